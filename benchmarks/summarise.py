"""Runs of several methods and seeds as one Markdown table: python benchmarks/summarise.py RUN_FOLDER...

Prints the final score of every task, OP and BWT for each run, and mean and spread (lowest to highest) for each method.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def summarise(folders: list[Path]) -> str:
    """The table; folders without scores.json are an error."""
    runs = [json.loads((folder / "scores.json").read_text(encoding="utf-8")) for folder in folders]
    versions = json.loads((folders[0] / "run.json").read_text(encoding="utf-8"))
    tasks = runs[0]["tasks"]
    lines = [
        "| method | seed | " + " | ".join(tasks) + " | OP | BWT | training s | memory bytes |",
        "|---" * (len(tasks) + 6) + "|",
        "| base model | - | " + " | ".join(f"{score:.1f}" for score in runs[0]["base"]) + " | - | - | - | - |",
    ]
    by_method = defaultdict(list)
    for run in runs:
        by_method[_name(run)].append(run)
        last = " | ".join(f"{score:.1f}" for score in run["matrix"][-1]["scores"])
        lines.append(
            f"| {_name(run)} | {run['seed']} | {last} | {run['op']:.1f} | {_number(run['bwt'])} "
            f"| {run['seconds']:.0f} | {run['memory_bytes']:,} |"
        )
    lines.append("")
    for name, group in by_method.items():
        ops, bwts = [run["op"] for run in group], [run["bwt"] for run in group if run["bwt"] is not None]
        lines.append(f"- {name}, {len(group)} seeds: OP {_spread(ops)}" + (f", BWT {_spread(bwts)}" if bwts else ""))
    versions_line = ", ".join(f"{name} {version}" for name, version in versions["versions"].items())
    return "\n".join([*lines, "", f"Machine: {versions['machine']}, one thread; {versions_line}."])


def _name(run: dict) -> str:
    return run["method"]["name"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    print(summarise([Path(name) for name in sys.argv[1:]]))

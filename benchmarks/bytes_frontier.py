"""Bytes of a kept sample against what is retained, on a short form of the demo's stream.

    python benchmarks/bytes_frontier.py --seeds 0 1 2 --raw benchmarks/results/bytes_frontier.json [--plot PNG]

Four skills that the demo's base model does not know are learned one after another, 300 examples and 8 epochs each, with
five samples kept of each; 60 test rows a task. Rows are DER++, SEEKR under several budgets, and DER++ with as many more
samples as a SEEKR row's bytes would hold. Bytes are those of the memory's tensors on this stream, and, from the plan,
those of a sample of 1,024 tokens with an answer of 128 on SmolLM2-135M. Runs that ``--raw`` has are not made again.
"""

import argparse
import json
import tempfile
import time
import warnings
from importlib.resources import as_file, files
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from field2026 import SETTINGS, TEST, TRAIN, task

from seekr_cl.config.overrides import apply_overrides
from seekr_cl.demo.skills import STREAM_SKILLS
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.sample_codec import pack
from seekr_cl.planning.shape import LayerShape, ModelShape
from seekr_cl.planning.signal_costs import sample_cost
from seekr_cl.runs.stream_run import run
from seekr_cl.training import config_from

TASKS, SAMPLES = 4, 5
COMMON: dict[str, Any] = SETTINGS | {"measure_every": 20}
SMOLLM2 = ModelShape("llama", {layer: LayerShape(9, 3, 64) for layer in range(30)}, 49152, 134_515_008, 8192)
TOKENS, ANSWER = 1024, 128
BASE, WHOLE = "derpp", "seekr"
ROWS: dict[str, str] = {
    BASE: "derpp",
    WHOLE: "seekr",
    "seekr all heads": "seekr method.heads=all method.query_budget=null",
    "8 queries": "seekr method.query_budget=8",
    "4 queries": "seekr method.query_budget=4",
    "8 queries, K 16": "seekr method.query_budget=8 method.attention_top_k=16",
    "8 queries, K 8": "seekr method.query_budget=8 method.attention_top_k=8",
    "8 answer queries, K 8": "seekr method.query_budget=8 method.attention_top_k=8 method.query_positions=answer",
    "small": "seekr preset=small",
}
"""What each row is, as on the command line."""
EQUAL = {"derpp, bytes of small": "small", "derpp, bytes of seekr": WHOLE}
"""DER++ with as many samples as the bytes of another row hold on this stream."""
RATIO = "derpp, bytes of small on SmolLM2"
"""DER++ with as many more samples as the bytes of ``small`` would hold on SmolLM2."""


def settings_of(row: str, samples: int, seed: int) -> dict[str, Any]:
    """A row's settings."""
    method, *given = ROWS.get(row, BASE).split()
    base = COMMON | {"method": {"name": method}, "seed": seed, "replay": {"samples": samples, "every": 3}}
    return apply_overrides(base, given, None)


def cost(row: str) -> int:
    """Bytes of a sample on SmolLM2, by the plan."""
    config = config_from(settings_of(row, SAMPLES, 0), "unused")
    return sample_cost(SMOLLM2, config.method.settings, config.signal_dtype or "int8", TOKENS, ANSWER).stored


def samples_of(row: str, seed: int, raw: dict[str, Any]) -> int:
    """How many samples of each task a row keeps."""
    if row == RATIO:
        return round(SAMPLES * cost("small") / cost(BASE))
    if row not in EQUAL:
        return SAMPLES
    bytes_of = {name: raw[f"{name} {seed}"]["bytes"] for name in (EQUAL[row], BASE)}
    return min(TRAIN, round(SAMPLES * bytes_of[EQUAL[row]] / bytes_of[BASE]))


def make(row: str, seed: int, samples: int, stream: list[Any]) -> dict[str, Any]:
    """One run."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder, as_file(files("seekr_cl.demo") / "model") as model:
        config = config_from(settings_of(row, samples, seed), folder, "bytes_frontier")
        matrix = run(model, stream, Path(folder) / "run", config)
        memory = ReplayMemory.open(Path(folder) / "run" / "memory")
        sizes = [sum(tensor.nbytes for tensor in pack([one]).values()) for _, one in memory.samples]
    return {
        "op": matrix.op,
        "bwt": matrix.bwt,
        "bytes": mean(sizes),
        "samples": samples,
        "last": matrix.rows[-1],
        "cpu": round(time.process_time() - started, 1),
    }


def table(raw: dict[str, Any], seeds: list[int]) -> list[str]:
    """The rows, each with the seeds that it has, in Markdown; a part of the gain is that of the same seeds."""
    columns = ["row", "seeds", "samples", "bytes a sample, here", "on SmolLM2", "OP", "BWT", "part of the gain"]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in [*ROWS, *EQUAL, RATIO]:
        here = [seed for seed in seeds if all(f"{name} {seed}" in raw for name in (row, BASE, WHOLE))]
        if not here:
            continue
        found, base, whole = ([raw[f"{name} {seed}"] for seed in here] for name in (row, BASE, WHOLE))
        gains = [[one["op"] - low["op"] for one, low in zip(side, base)] for side in (found, whole)]
        each = [100 * part / gain for part, gain in zip(*gains)]
        part = f"{100 * mean(gains[0]) / mean(gains[1]):.0f}% ({min(each):.0f} to {max(each):.0f})"
        samples = " to ".join(sorted({str(one["samples"]) for one in found}))
        cells = [row, ", ".join(map(str, here)), samples, f"{mean(one['bytes'] for one in found):,.0f}"]
        cells += [f"{cost(row):,}", _spread(found, "op"), _spread(found, "bwt"), "0" if row == BASE else part]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _spread(found: list[dict[str, Any]], key: str) -> str:
    values = [one[key] for one in found]
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def draw(raw: dict[str, Any], seeds: list[int], path: Path) -> None:
    """OP over bytes of all samples of a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in [*ROWS, *EQUAL, RATIO]:
        found = [raw[f"{row} {seed}"] for seed in seeds if f"{row} {seed}" in raw]
        if found:
            size, score = mean(one["bytes"] * one["samples"] for one in found), [one["op"] for one in found]
            color = "tab:orange" if row.startswith(BASE) else "tab:blue"
            axes.errorbar(
                size, mean(score), [[mean(score) - min(score)], [max(score) - mean(score)]], fmt="o", color=color
            )
            axes.annotate(row, (size, mean(score)), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set(xscale="log", xlabel="bytes kept of a task", ylabel="OP, mean and range over seeds")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Makes what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", default=[*ROWS, *EQUAL, RATIO], help="those to make; all are shown")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    raw = json.loads(given.raw.read_text(encoding="utf-8")) if given.raw.exists() else {}
    stream = [task(skill, TRAIN, TEST, 1) for skill in STREAM_SKILLS[:TASKS]]
    for seed in given.seeds:
        for row in given.rows:
            if f"{row} {seed}" not in raw:
                raw[f"{row} {seed}"] = made = make(row, seed, samples_of(row, seed, raw), stream)
                given.raw.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
                print(f"{row} {seed}: {made}", flush=True)
    print("\n".join(table(raw, given.seeds)))
    if given.plot:
        draw(raw, given.seeds, given.plot)


if __name__ == "__main__":
    main()

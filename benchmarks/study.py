"""Methods and seeds on one stream: a run each, and the table that compares them with intervals over the seeds.

    python benchmarks/study.py examples/standard5.yaml --methods seqft replay seekr --seeds 0 1 2 --output runs/study \\
        replay.ratio=0.05 limit.train=300

Runs are ``seekr run`` in processes of their own, seed by seed. The same command again goes on
with what was interrupted and makes what is missing. OUTPUT/study.md is written anew after each seed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


def runs(given: argparse.Namespace) -> list[tuple[int, str, Path]]:
    """Seed, method and folder of each run, in the order in which they are made."""
    return [(seed, method, given.output / f"{method}-{seed}") for seed in given.seeds for method in given.methods]


def run(given: argparse.Namespace, seed: int, method: str, folder: Path) -> None:
    """One run; its lines go to a log file beside its folder.

    Raises:
        SystemExit: If it fails, with the end of its log.
    """
    log = folder.with_suffix(".log")
    command = ["run", str(given.stream), "--method", method, "--output", str(folder), f"seed={seed}", *given.settings]
    with log.open("a", encoding="utf-8") as lines:
        code = subprocess.run(
            [sys.executable, "-m", "seekr_cl", *command, *(["--resume"] if folder.exists() else [])],
            stdout=lines,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        raise SystemExit(
            f"{folder} failed with {code}:\n" + "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
        )


def page(given: argparse.Namespace, finished: list[Path]) -> str:
    """The comparison of what is finished as Markdown, under the command and the machine that made it."""
    table = subprocess.run(
        [sys.executable, "-m", "seekr_cl", "compare", *map(str, finished), "--markdown"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    about = json.loads((finished[0] / "run.json").read_text(encoding="utf-8"))
    shown = ["python benchmarks/study.py", str(given.stream), "--methods", *given.methods]
    shown += ["--seeds", *map(str, given.seeds), "--output", str(given.output), *given.settings]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"```bash\n{' '.join(shown)}\n```\n\n{table}\nMachine: {about['machine']}, threads: {threads}; {versions}.\n"


def main() -> None:
    """Makes what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stream", type=Path)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True)
    given, given.settings = parser.parse_known_args()
    given.output.mkdir(parents=True, exist_ok=True)
    finished: list[Path] = []
    for seed, method, folder in runs(given):
        print(f"{folder}: {method}, seed {seed}", flush=True)
        run(given, seed, method, folder)
        finished.append(folder)
        if method == given.methods[-1]:
            (given.output / "study.md").write_text(page(given, finished), encoding="utf-8")
    print(f"table in {given.output / 'study.md'}")


if __name__ == "__main__":
    main()

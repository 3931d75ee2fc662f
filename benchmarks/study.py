"""A study in stages: each asks one question of several methods and seeds on a stream, as its plan says.

    python benchmarks/study.py run benchmarks/results/study/plan.yaml --runs runs/study --parallel 2 [--stage NAME ...]
    python benchmarks/study.py tables benchmarks/results/study/plan.yaml --runs runs/study

Runs are ``seekr run`` in processes of their own with one thread each, as many side by side as ``--parallel`` says. The
same command again goes on with what was interrupted and makes what is missing; rows whose rate a sweep decides come
last. ``tables`` copies the finished runs' ``scores.json`` beside the plan and writes a table and a picture for each
stage; it can be run while others are made.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import yaml
from study_plan import Plan, Run, Stage, read_plan
from study_report import finished, settings_of, write_stage

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / ".venv" / "smollm2"


def environment() -> dict[str, str]:
    """One thread a run, which is the fastest way to use few cores, and the places that a plan's streams name."""
    return {
        "SEEKR_SHARED": str(ROOT.parent / "shared"),
        "SEEKR_SMOLLM2": str(MODEL),
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }


def command(plan: Plan, run: Run, runs: Path) -> list[str]:
    """The ``seekr run`` that makes a run; its stream is written beside its folder."""
    settings = settings_of(plan, run.row, runs)
    stream = runs / run.stream / "stream.yaml"
    stream.parent.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(dict(plan.streams[run.stream]), sort_keys=False, allow_unicode=True)
    if not stream.exists() or stream.read_text(encoding="utf-8") != content:
        stream.write_text(content, encoding="utf-8")
    folder = run.folder(runs)
    words = ["run", str(stream), "--method", str(settings.pop("method")), "--output", str(folder), f"seed={run.seed}"]
    words += [f"{key}={_flow(value)}" for key, value in settings.items()]
    return [sys.executable, "-m", "seekr_cl", *words, *(["--resume"] if folder.exists() else [])]


def _flow(value: object) -> str:
    """A YAML value on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).splitlines()[0]


class Worker:
    """Makes runs until one fails."""

    def __init__(self, plan: Plan, runs: Path) -> None:
        self.plan, self.runs, self.failed = plan, runs, Event()

    def make(self, run: Run) -> None:
        """One run, if it is not there yet; its lines go to a log file beside its folder."""
        folder = run.folder(self.runs)
        if self.failed.is_set() or finished(folder):
            return
        words, begun = command(self.plan, run, self.runs), time.monotonic()
        with folder.with_suffix(".log").open("a", encoding="utf-8") as lines:
            done = subprocess.run(words, stdout=lines, stderr=subprocess.STDOUT, env=environment(), check=False)
        took = f"{time.monotonic() - begun:.0f} s"
        about = f"{run.stream} {run.row} {run.seed}"
        if done.returncode:
            self.failed.set()
            log = folder.with_suffix(".log").read_text(encoding="utf-8").splitlines()
            last = "\n".join(log[-5:])
            print(f"{about}: failed with {done.returncode} after {took}\n{last}", flush=True)
        else:
            print(f"{about}: {took}", flush=True)


def make(plan: Plan, stages: list[Stage], runs: Path, parallel: int) -> None:
    """All runs of the stages that are missing.

    Raises:
        SystemExit: 1 if one failed; those that were under way are ended first.
    """
    worker = Worker(plan, runs)
    wanted = list(dict.fromkeys(run for stage in stages for run in stage.runs()))
    print(f"{len(wanted)} runs, {sum(finished(run.folder(runs)) for run in wanted)} of them made before", flush=True)
    # What a sweep decides cannot begin before it is over.
    for waits in (False, True):
        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(worker.make, [run for run in wanted if bool(plan.sweep_of(run.row)) == waits]))
    if worker.failed.is_set():
        raise SystemExit(1)


def main() -> None:
    """Makes what is missing, or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "tables"])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--stage", nargs="+")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side")
    given = parser.parse_args()
    plan = read_plan(given.plan)
    stages = plan.chosen(given.stage)
    if given.what == "run":
        make(plan, stages, given.runs, given.parallel)
    for stage in stages:
        print(write_stage(stage, plan, given.runs, given.plan.parent))


if __name__ == "__main__":
    main()

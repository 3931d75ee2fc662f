"""The settings and methods of 2026 on a short form of the demo's stream, a row each.

    python benchmarks/field2026.py "seqft" "seqft task_loss=dft" "seqft average.kind=sfa average.beta=0.5" --seeds 0 1

A variant is a method of the library and settings as on the command line. Three skills that the demo's base model does
not know (``length`` has answers of one token) are learned one after another; after each all three and the eight skills
that it has mastered are asked. Printed for each variant and seed: exact match right after learning each skill, OP, BWT,
base skills kept, seconds. Data are those of the demo; the seed draws order and samples.
"""

import argparse
import tempfile
import time
import warnings
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from seekr_cl.config.overrides import apply_overrides
from seekr_cl.demo.skills import BASE_SKILLS, STREAM_SKILLS, Skill, examples
from seekr_cl.methods import get_method
from seekr_cl.runs.stream_run import run
from seekr_cl.tasks import Task
from seekr_cl.training import config_from

TRAIN, TEST, PROBES = 300, 60, 20
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 8,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 160,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "measure_every": 0,
    "max_length": 64,
    "progress": "none",
    "use_cpu": True,
    "keep_models": "last",
    "checkpoint_every": 0,
}
REPLAY: dict[str, Any] = {"ratio": 0.03, "every": 3}


def task(skill: Skill, train: int, test: int, seed: int) -> Task:
    """A skill as a task."""
    rows = examples(skill, train + test, seed=seed)
    loaded = Task.load(rows, name=skill.name, max_new_tokens=14)
    return Task(skill.name, loaded.train[:train], test=loaded.train[train:], max_new_tokens=14)


def row(variant: str, seed: int, stream: list[Task], probes: list[Task]) -> str:
    """One run, as a line of a table."""
    method, *given = variant.split()
    settings = dict(SETTINGS) | {"method": {"name": method}, "seed": seed}
    if get_method(method).replays:
        settings["replay"] = dict(REPLAY)
    settings = apply_overrides(settings, given, None)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, as_file(files("seekr_cl.demo") / "model") as model:
        config = config_from(settings, folder, "field2026")
        matrix = run(model, stream, Path(folder) / "run", config, probes=probes)
    after = " ".join(f"{matrix.rows[number][number]:.0f}" for number in range(len(stream)))
    seconds = time.perf_counter() - started
    scores = " | ".join(f"{value:.1f}" for value in (matrix.op, matrix.bwt, matrix.base_kept) if value is not None)
    return f"| `{variant}` | {seed} | {after} | {scores} | {seconds:.0f} |"


def main() -> None:
    """Prints the table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tasks", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    stream = [task(skill, TRAIN, TEST, 1) for skill in STREAM_SKILLS[: given.tasks]]
    probes = [task(skill, 1, PROBES, 2) for skill in BASE_SKILLS]
    names = " ".join(one.name for one in stream)
    print(
        f"| variant | seed | right after: {names} | OP | BWT | base kept | s |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for variant in given.variants:
        for seed in given.seeds:
            print(row(variant, seed, stream, probes), flush=True)


if __name__ == "__main__":
    main()

"""The streams that are killed: each is what one process does, from its beginning or from where the one before was."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from tinylm import config_for, constant_task, reverse_task

from seekr_cl.memory import ReplayMemory
from seekr_cl.runs.stream_run import run
from seekr_cl.system import fault_points as faults
from seekr_cl.tasks import Task
from seekr_cl.training import learn

CASES: dict[str, dict[str, Any]] = {
    # lambda2 is steered, and general data goes through the model before the first task.
    "seekr": {"method": "seekr", "general": "GENERAL", "general_samples": 3, "num_train_epochs": 2},
    # In the middle of its second task the averages of the next line in the log are half formed.
    "derpp": {
        "method": "derpp",
        "packing": True,
        "gradient_accumulation_steps": 2,
        "logging_steps": 3,
        "num_train_epochs": 3,
        "checkpoint_every": 1,
    },
    "official": {
        "method": "seekr",
        "preset": "official",
        "replay": {"ratio": 0.25},
        "num_train_epochs": 3,
        "checkpoint_every": 3,
    },
    "replay": {"method": "replay", "lr_scheduler_type": "linear", "measure_every": 2, "checkpoint_every": 0},
    "ewc": {"method": {"name": "ewc", "fisher_samples": 3}},
    "lora": {
        "method": {"name": "seekr", "teacher": "adapter"},
        "peft": {"r": 2, "lora_dropout": 0.1, "target_modules": "all-linear"},
        "general": "GENERAL",
    },
    "learn": {"method": "seekr", "checkpoint_every": 2},
}
"""What is killed; ``learn`` is separate calls, the others are runs."""


def tasks() -> list[Task]:
    return [reverse_task(count=8), constant_task("no", "no", 8), constant_task("yes", "yes", 8)]


def work(base: Path, folder: Path, case: str) -> None:
    """What one process does: go on, or begin if there is nothing."""
    settings = {"checkpoint_every": 2} | CASES[case]
    if "general" in settings:
        settings["general"] = str(base.parent / "general.jsonl")
    config = config_for(settings.pop("method"), folder, **settings)
    if case != "learn":
        run(base, tasks(), folder / "run", config, resume=True)
        return
    source = base
    for number, task in enumerate(tasks(), start=1):
        output = folder / f"m{number}"
        # The newest task is asked for again even if it is done: its process may have been killed before it tidied up.
        memory = folder / "memory"
        # Killed in the first commit, a memory has a manifest and no generation yet: it counts as new.
        passed = (memory / "manifest.json").exists() and ReplayMemory.open(memory, create=True).generation > number
        if not passed:
            learn(source, task, folder / "memory", output, config, resume=True)
        source = output


def child(base: str, folder: str, case: str) -> int:
    """A process that does it, and leaves in ``passed.json`` how often it passed each fault point if it ends."""
    place = Path(folder)
    error = os.open(place / "err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(error, 1)
    os.dup2(error, 2)
    warnings.simplefilter("ignore")
    work(Path(base), place, case)
    (place / "passed.json").write_text(json.dumps(faults.passed))
    return 0

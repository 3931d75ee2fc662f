"""What ``seekr evaluate`` says of a folder that a method wrote."""

import json
from pathlib import Path

from seekr_cl.cli.main import main
from seekr_cl.tasks import Task


def evaluate_words(model: Path, task: Task, folder: Path) -> list[str]:
    """The command on a task's tests, which are written into ``folder``."""
    file = folder / f"{task.name}.jsonl"
    file.write_text("".join(json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in task.test))
    return ["evaluate", "--model", str(model), "--task", str(file), "--max-new-tokens", "4"]


def assert_scores_are_the_runs(model: Path, task: Task, folder: Path) -> None:
    """The command scores a model as the second stage of ``folder/run`` scored the one that is the same."""
    assert main([*evaluate_words(model, task, folder), "--output", str(folder / "scores")]) == 0
    found = json.loads((folder / "scores/scores.json").read_text())["tasks"][task.name]
    stage = json.loads((folder / "run/evaluations/02-reverse/scores.json").read_text())
    assert found["score"] == stage["scores"][task.name]

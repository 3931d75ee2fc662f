"""Folders of ``seekr evaluate`` with given answers, written by the library's own writers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from made_runs import EVALUATION, _Plain, task

from seekr_cl.evaluation import score_answers, write_predictions
from seekr_cl.evaluation.task_scoring import Scored
from seekr_cl.system.files import write_json


def make_evaluation(folder: Path, right: Mapping[str, Sequence[bool]], **more: Any) -> Path:
    """An evaluation in which each task's examples are answered right or wrong as given."""
    scored = Scored()
    for name, answers in right.items():
        one = task(name, len(answers))
        texts = [example.completion if good else "no" for example, good in zip(one.test, answers, strict=True)]
        score = score_answers(one, _Plain(), texts)  # type: ignore[arg-type]
        scored.add(one, score)
        write_predictions(folder, score)
    write_json(folder / "scores.json", {"model": "m", **scored.to_json(), "evaluation": EVALUATION} | more)
    return folder


def fates(kept: int, lost: int = 0, gained: int = 0, never: int = 0) -> tuple[list[bool], list[bool]]:
    """Whether each of so many examples of each fate is right before, and after."""
    before = [True] * (kept + lost) + [False] * (gained + never)
    return before, [True] * kept + [False] * lost + [True] * gained + [False] * never

"""Evaluation: generating answers, scoring them, and the matrix of scores a stream gives.

Imported on first use: scoring answers that are there already needs no model, and so no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seekr_cl.evaluation.answer_engines import Engine, TransformersEngine
    from seekr_cl.evaluation.evaluate import (
        Place,
        TaskScore,
        answer_task,
        evaluate_task,
        read_tally,
        score_answers,
        score_task,
        settings_of,
        write_predictions,
    )
    from seekr_cl.evaluation.generate import generate_answers
    from seekr_cl.evaluation.metrics import METRICS, Metric, get_metric
    from seekr_cl.evaluation.scores import ScoreMatrix
    from seekr_cl.evaluation.statistics import bootstrap, paired_test

_PLACES = {
    **dict.fromkeys(("Engine", "TransformersEngine"), "answer_engines"),
    **dict.fromkeys(("Place", "TaskScore", "answer_task", "evaluate_task", "read_tally"), "evaluate"),
    **dict.fromkeys(("score_answers", "score_task", "settings_of", "write_predictions"), "evaluate"),
    "generate_answers": "generate",
    **dict.fromkeys(("METRICS", "Metric", "get_metric"), "metrics"),
    "ScoreMatrix": "scores",
    **dict.fromkeys(("bootstrap", "paired_test"), "statistics"),
}

__all__ = [
    "METRICS",
    "Engine",
    "Metric",
    "Place",
    "ScoreMatrix",
    "TaskScore",
    "TransformersEngine",
    "answer_task",
    "bootstrap",
    "evaluate_task",
    "generate_answers",
    "get_metric",
    "paired_test",
    "read_tally",
    "score_answers",
    "score_task",
    "settings_of",
    "write_predictions",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'seekr_cl.evaluation' has no attribute '{name}'")
    return getattr(import_module(f"seekr_cl.evaluation.{_PLACES[name]}"), name)

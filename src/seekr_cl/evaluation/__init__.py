"""Evaluation: generating answers, scoring them, and the matrix of scores a stream gives."""

from seekr_cl.evaluation.engines import Engine, TransformersEngine
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

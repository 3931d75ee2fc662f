"""Evaluation: generating answers, scoring them, and the matrix of scores a stream gives."""

from seekr_cl.evaluation.evaluate import TaskScore, evaluate_task, write_predictions
from seekr_cl.evaluation.generate import generate_answers
from seekr_cl.evaluation.metrics import METRICS, Metric, get_metric
from seekr_cl.evaluation.scores import ScoreMatrix

__all__ = [
    "METRICS",
    "Metric",
    "ScoreMatrix",
    "TaskScore",
    "evaluate_task",
    "generate_answers",
    "get_metric",
    "write_predictions",
]

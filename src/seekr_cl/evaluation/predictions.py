"""A run's answers, read back from its folder: what intervals and paired tests are made of."""

from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.evaluation.evaluate import read_tally
from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.evaluation.statistics import CONVENTION, Answered, aggregate_intervals, bootstrap
from seekr_cl.tasks.task import safe_name


def read_answered(run: Path, matrix: ScoreMatrix) -> Answered | None:
    """The answers behind a run's last row and its diagonal.

    Args:
        run: the run's folder.
        matrix: its scores so far; at least one row.

    Returns:
        Of the tasks learned so far; None if predictions are missing or do not give the scores that the matrix has.
    """
    slugs = [safe_name(task) for task in matrix.tasks]
    stages = ["all"] if matrix.joint else slugs
    folders = [run / "evaluations" / f"{number:02d}-{stage}" for number, stage in enumerate(stages, 1)]
    count, last = matrix.learnt, len(matrix.rows) - 1
    try:
        final = [read_tally(folders[last] / f"{slugs[j]}.jsonl", matrix.metrics[j]) for j in range(count)]
        learnt = [
            final[j] if j == last else read_tally(folders[j] / f"{slugs[j]}.jsonl", matrix.metrics[j])
            for j in range(0 if matrix.joint else count)
        ]
    except DataError:
        return None
    shown = [(tally.score, matrix.rows[last][j]) for j, tally in enumerate(final)]
    shown += [(tally.score, matrix.rows[j][j]) for j, tally in enumerate(learnt)]
    return Answered(final, learnt) if all(abs(one - other) < 1e-6 for one, other in shown) else None


def describe_intervals(run: Path, matrix: ScoreMatrix) -> dict[str, Any]:
    """The intervals of one run for its ``scores.json``: of the last row's tasks, OP and BWT, over the examples."""
    answered = read_answered(run, matrix) if matrix.rows else None
    if answered is None:
        return {"level": CONVENTION, "tasks": {}, "op": None, "bwt": None, "bwt_over_n": None}
    tasks = {task: bootstrap(tally).to_json() for task, tally in zip(matrix.tasks, answered.last)}
    aggregates = aggregate_intervals([answered])
    return {"level": CONVENTION, "tasks": tasks} | {
        name: interval and interval.to_json() for name, interval in aggregates.items()
    }

"""Predictions files as they are read: by intervals and verdicts, by the table of a comparison and by the report."""

import math
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.evaluation.metrics import Metric
from seekr_cl.evaluation.statistics import Tally
from seekr_cl.system import reading


def read_rows(path: Path, called: str | None = None) -> list[dict[str, Any]]:
    """The rows of a predictions file, each checked.

    Args:
        path: the file.
        called: what an error calls it; default its whole path.

    Returns:
        a record an example: at least ``prompt``, ``prediction``, ``references`` and ``score``.

    Raises:
        DataError: naming the file and what is wrong, if it is missing, empty or damaged.
    """
    try:
        content = reading.read_text(path, limit=None).encode()
        rows = [reading.parse_json(row) for row in reading.json_lines(content)]
        if not rows:
            raise ValueError("it is empty")
        for number, row in enumerate(rows, 1):
            if not _is_prediction(row):
                raise ValueError(f"line {number} holds no prediction")
    except OSError as error:
        raise _damaged(called or path, error.strerror or "not readable") from error
    except ValueError as error:
        raise _damaged(called or path, error) from error
    return rows


def tally_of(path: Path, rows: list[dict[str, Any]], metric: Metric) -> Tally:
    """The rows' answers as numbers, of the texts that were scored.

    Raises:
        DataError: naming the file, if the metric cannot be computed from them.
    """
    texts = [row.get("scored", row["prediction"]) for row in rows]
    try:
        return metric.tally(texts, [row["references"] for row in rows], [float(row["score"]) for row in rows])
    except (ValueError, IndexError) as error:
        raise _damaged(path, f"no {metric.name} of them: {error}") from error


def _is_prediction(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    texts, score = row.get("references"), row.get("score")
    if not isinstance(texts, list) or isinstance(score, bool) or not isinstance(score, int | float):
        return False
    said = [row.get("prompt"), row.get("prediction"), row.get("scored", ""), *texts]
    return all(isinstance(one, str) for one in said) and math.isfinite(score)


def _damaged(path: Path | str, why: object) -> DataError:
    return DataError(f"{path}: no predictions of this library ({why}); evaluate again")

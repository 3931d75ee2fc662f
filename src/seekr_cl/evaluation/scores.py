"""ScoreMatrix: what a model scores on every task after every task, and the numbers the field makes of it.

``rows[i][j]`` is the score on task j after learning task i, R_ij; ``base[j]`` the base model's.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from seekr_cl.errors import DataError
from seekr_cl.system import reading

CONVENTIONS = {
    "op": "overall performance: mean over the learnt tasks j of the last row, R_Nj",
    "bwt": "backward transfer: mean over the first N-1 tasks of R_Nj - R_jj",
    "bwt_over_n": "the same sum divided by N, as the official SEEKR and TRACE-style scripts print it",
    "forgetting": "mean over the first N-1 tasks of the best earlier score from R_jj on, minus R_Nj",
    "fwt": "forward transfer: mean over the tasks from the second on of R_(j-1)j - base_j",
}


@dataclass(slots=True)
class ScoreMatrix:
    """Scores of a run, complete or still going.

    Attributes:
        tasks: names in order.
        metrics: the metric of each.
        base: the base model's scores.
        rows: a row after each task; under multi-task training one row after all of them.
        extra: ``{probe: scores}`` of what is never trained on, the base model's first, then one a row.
        joint: the only row came from training on all tasks at once.
    """

    tasks: list[str]
    metrics: list[str]
    base: list[float] | None = None
    rows: list[list[float]] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)
    joint: bool = False

    @property
    def learnt(self) -> int:
        """How many tasks the last row has behind it."""
        return len(self.tasks) if self.joint and self.rows else len(self.rows)

    @property
    def op(self) -> float | None:
        """Overall performance over the tasks learned so far."""
        return _mean(self.rows[-1][: self.learnt]) if self.rows else None

    def _changes(self) -> list[float]:
        return [self.rows[-1][j] - self.rows[j][j] for j in range(len(self.rows) - 1)]

    @property
    def bwt(self) -> float | None:
        """Backward transfer over N-1; None before the second task."""
        return _mean(self._changes())

    @property
    def bwt_over_n(self) -> float | None:
        """Backward transfer divided by N."""
        return sum(self._changes()) / len(self.rows) if len(self.rows) > 1 else None

    @property
    def forgetting(self) -> float | None:
        """Mean drop from the best earlier score."""
        last = len(self.rows) - 1
        return _mean([max(self.rows[i][j] for i in range(j, last)) - self.rows[last][j] for j in range(last)])

    @property
    def fwt(self) -> float | None:
        """Forward transfer; None without a base row or before the second task."""
        base = self.base
        if base is None:
            return None
        return _mean([self.rows[j - 1][j] - base[j] for j in range(1, len(self.rows))])

    @property
    def plasticity(self) -> float | None:
        """Mean score of each task right after it was learned; None under multi-task training."""
        return None if self.joint else _mean([row[place] for place, row in enumerate(self.rows)])

    @property
    def base_kept(self) -> float | None:
        """Mean of the probes in the last row, of those that have it: what is left of what the base model could do."""
        stages = max(map(len, self.extra.values()), default=0)
        return _mean([scores[-1] for scores in self.extra.values() if scores and len(scores) == stages])

    def to_json(self) -> dict[str, Any]:
        """The content of ``scores.json``."""
        names = ["+".join(self.tasks)] if self.joint else self.tasks
        matrix = [{"after": "base", "scores": self.base}] if self.base is not None else []
        matrix += [{"after": name, "scores": row} for name, row in zip(names, self.rows)]
        return {
            "tasks": self.tasks,
            "metrics": self.metrics,
            "base": self.base,
            "matrix": matrix,
            "joint": self.joint,
            "probes": self.extra,
            "op": self.op,
            "bwt": self.bwt,
            "bwt_over_n": self.bwt_over_n,
            "forgetting": self.forgetting,
            "fwt": self.fwt,
            "plasticity": self.plasticity,
            "conventions": CONVENTIONS,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], source: str = "scores") -> Self:
        """The matrix behind a ``scores.json``.

        Raises:
            DataError: naming the file, if keys are missing or sizes do not fit.
        """
        try:
            base = content["base"]
            # By place, not by name: a task may be called "base" too.
            rows = [row["scores"] for row in content["matrix"]][base is not None :]
            matrix = cls(list(content["tasks"]), list(content["metrics"]), base, rows, dict(content.get("probes", {})))
            matrix.joint = bool(content.get("joint", False))
            scores = [*rows, *([] if base is None else [base])]
            fits = all(len(row) == len(matrix.tasks) == len(matrix.metrics) for row in scores)
            numbers = [score + 0.0 for row in [*scores, *matrix.extra.values()] for score in row]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: not a scores.json of this library ({error!r}); run the stream again") from error
        if not fits or len(rows) > (1 if matrix.joint else len(matrix.tasks)):
            raise DataError(f"{source}: rows, scores and tasks do not fit each other; run the stream again")
        if not all(map(math.isfinite, numbers)):
            raise DataError(f"{source}: holds a score that is not a finite number; run the stream again")
        return matrix

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            DataError: if it is missing or damaged.
        """
        try:
            return cls.from_json(reading.read_json(path), str(path))
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not readable as JSON ({error})") from error


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

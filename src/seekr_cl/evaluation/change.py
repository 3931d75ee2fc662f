"""How a model's score on a task has changed, how sure that is, and how many examples would make it surer.

The interval is the percentile interval of a paired bootstrap. Where fewer than ten examples changed, a bootstrap cannot
draw what did not happen: three right answers out of three, before and after, would be kept "surely". There the interval
also covers that of Bonett and Price (2012) for paired proportions, which counts one more example lost and one more
gained than there were.

Shapes: N examples.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from seekr_cl.errors import DataError
from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.evaluation.prediction_files import read_rows, tally_of
from seekr_cl.evaluation.statistics import LEVEL, RESAMPLES, Array, Interval, Tally, paired_interval
from seekr_cl.evaluation.transitions import Transitions, choices_of, transitions

FEW = 10
"""Changed examples below which the bootstrap alone is not trusted."""
_MOST = 10_000_000
"""No test set is larger; what would need more is said not to be told by any number."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A predictions file, read.

    Attributes:
        path: the file.
        tally: the task's answers as numbers.
        scores_N: each example's score, 0 to 100.
        asked: prompt and accepted answers of each example; None where they were forgotten.
        valid_N: 100 for each answer whose form is as it should be, else 0.
    """

    path: Path
    tally: Tally
    scores_N: Array
    asked: list[tuple[str, tuple[str, ...]] | None]
    valid_N: Array | None = None

    @property
    def choices(self) -> int | None:
        """Among how many answers the task chooses."""
        return choices_of([one[1] for one in self.asked if one is not None])


@dataclass(frozen=True, slots=True)
class Change:
    """A score before and after.

    Attributes:
        before: 0 to 100.
        after: 0 to 100.
        interval: of the change, after less before.
        level: of the interval.
        examples: that both were measured on.
        changed: examples whose answers' scores differ; None where single answers are not known.
        squares: mean square of an example's change; None likewise.
        transitions: what became of the examples; None likewise.
    """

    before: float
    after: float
    interval: Interval
    level: float
    examples: int
    changed: int | None = None
    squares: float | None = None
    transitions: Transitions | None = None

    @property
    def value(self) -> float:
        """After less before, in points."""
        return self.after - self.before

    def outcome(self, max_drop: float) -> str:
        """``kept`` if the drop surely is no more than that, ``lost`` if it surely is more, else ``unsure``."""
        if self.interval.low >= -max_drop:
            return "kept"
        return "lost" if self.interval.high < -max_drop else "unsure"

    def needed(self, max_drop: float) -> int | None:
        """How many examples would settle ``outcome`` if the change stayed what it is.

        Returns:
            Examples in all; None if no number would, the change being as large as what is allowed.
        """
        if self.outcome(max_drop) != "unsure":
            return self.examples
        if self._settles(_MOST, max_drop) is False:
            return None
        low, high = self.examples, 2 * self.examples
        while not self._settles(high, max_drop):
            low, high = high, min(2 * high, _MOST)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._settles(middle, max_drop) else (middle, high)
        return _rounded(high)

    def _settles(self, count: int, max_drop: float) -> bool:
        if self.squares is None:
            half = (self.interval.high - self.interval.low) / 2 * (self.examples / count) ** 0.5
            low, high = self.value - half, self.value + half
        else:
            around = _around(self.value, self.squares, count, self.level)
            low, high = around.low, around.high
        return low >= -max_drop or high < -max_drop


def paired_change(
    before: Predictions, after: Predictions, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Change:
    """Compares two models' answers to the same examples.

    Args:
        before: the earlier model's.
        after: the later model's.
        level: of the intervals.
        resamples: replicates.
        seed: of the drawing.

    Raises:
        DataError: if the two are not about the same examples; it names the first that differs.
    """
    _require_same(before, after)
    found = paired_interval([before.tally], [after.tally], level=level, resamples=resamples, seed=seed)
    change_N = after.scores_N - before.scores_N
    changed = int((change_N != 0).sum())
    squares = float(np.square(change_N).mean())
    value = after.tally.score - before.tally.score
    if changed < FEW:
        rare = _around(value, squares, len(change_N), level)
        found = Interval(min(found.low, rare.low), max(found.high, rare.high))
    moved = transitions(before.scores_N, after.scores_N, after.choices, level=level, resamples=resamples, seed=seed)
    return Change(before.tally.score, after.tally.score, found, level, len(change_N), changed, squares, moved)


def format_change(before: Predictions, after: Predictions, *, level: float = LEVEL) -> dict[str, Any] | None:
    """How the share of answers with a valid format has changed, as ``describe`` tells a change.

    None where all answers have one before and after, or are not read from files.
    """
    if before.valid_N is None or after.valid_N is None or min(before.valid_N.min(), after.valid_N.min()) == 100:
        return None
    return describe(score_change(before.valid_N, after.valid_N, level=level))


def score_change(before_N: Array, after_N: Array, *, level: float = LEVEL, resamples: int = RESAMPLES) -> Change:
    """The change of a mean over examples, of whose answers nothing is known but their scores.

    Args:
        before_N: of each example before, 0 to 100.
        after_N: of the same examples after.
        level: of the intervals.
        resamples: replicates.

    Raises:
        DataError: if they are not as many, none, or not all finite.
    """
    if not len(before_N) or before_N.shape != after_N.shape:
        raise DataError(f"{len(before_N)} examples before and {len(after_N)} after; a change needs the same ones")
    if not (np.isfinite(before_N).all() and np.isfinite(after_N).all()):
        raise DataError("a score is not a finite number")
    both = [Predictions(Path(), Tally(one[:, None]), one, [None] * len(one)) for one in (before_N, after_N)]
    return paired_change(both[0], both[1], level=level, resamples=resamples)


def unpaired_change(
    before: float, after: float, errors: tuple[float, float], examples: int, *, level: float = LEVEL
) -> Change:
    """A change of which only both scores' standard errors are known, so that its interval is a wide one."""
    half = NormalDist().inv_cdf((1 + level) / 2) * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    return Change(before, after, Interval(after - before - half, after - before + half), level, examples)


def read_predictions(path: Path, metric_name: str) -> Predictions:
    """Reads a predictions file.

    Raises:
        DataError: naming the file, if it is missing or damaged.
        ConfigError: for an unknown metric.
    """
    metric = get_metric(metric_name)
    rows = read_rows(path)
    scores_N = np.array([float(row["score"]) for row in rows])
    asked = [None if row.get("forgotten") else (row["prompt"], tuple(row["references"])) for row in rows]
    valid = np.array([100.0 * (not row.get("faults")) for row in rows])
    return Predictions(path, tally_of(path, rows, metric), scores_N, asked, valid)


def describe(change: Change) -> dict[str, Any]:
    """As ``verdict.json`` holds it."""
    return {
        "before": round(change.before, 4),
        "after": round(change.after, 4),
        "change": round(change.value, 4),
        "interval": change.interval.to_json(),
        "examples": change.examples,
        "changed_examples": change.changed,
        "transitions": change.transitions and change.transitions.to_json(),
    }


def _require_same(before: Predictions, after: Predictions) -> None:
    if len(before.asked) != len(after.asked):
        raise DataError(
            f"{after.path}: {len(after.asked)} examples against {len(before.asked)} in {before.path}; evaluate both "
            "models on the same test set"
        )
    for row, (one, other) in enumerate(zip(before.asked, after.asked), 1):
        if None not in (one, other) and one != other:
            raise DataError(
                f"{after.path}: row {row} is not the example that {before.path} has there; evaluate both models on the "
                "same test set"
            )


def _around(value: float, squares: float, count: int, level: float) -> Interval:
    """Bonett and Price's interval of a mean change, for so many examples like these."""
    mean = value * count / (count + 2)
    square = (squares * count + 2 * 100.0**2) / (count + 2)
    half = NormalDist().inv_cdf((1 + level) / 2) * (max(0.0, square - mean**2) / (count + 2)) ** 0.5
    return Interval(mean - half, mean + half)


def _rounded(count: int) -> int:
    """Up to two digits: an estimate is no better than that."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step

"""What became of each example: right before and wrong after, and the reverse, with and without what guessing explains.

A change in a mean hides examples that were lost behind others that were gained. Of a graded metric an example counts
with the points that it lost or gained, so that gained less lost is the change in the mean whatever the metric.

Who does not know one of k choices guesses right with chance 1/k, so that some examples go from right to wrong although
nothing was forgotten: (1 - A)(1 - B) / (k - 1) of all, with A and B the accuracies before and after. Less that, and not
below zero, is what Harmon et al. (arXiv 2510.17776, and their code) call F_true and BT_true.

Shapes: N examples, R replicates, C columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from seekr_cl.evaluation.statistics import LEVEL, RESAMPLES, Array, Interval, Tally, bootstrap_each

_MOST_CHOICES = 20
"""More different answers than that are no choice."""
_EACH = 5
"""Examples of each choice, at the least and on average, that make it one."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the examples, in points of the score, with its interval."""

    value: float
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """``value`` and ``interval``."""
        return {"value": round(self.value, 4), "interval": self.interval.to_json()}


@dataclass(frozen=True, slots=True)
class Transitions:
    """What became of a task's examples.

    Attributes:
        lost: points lost by examples that got worse, over all examples.
        gained: points gained by examples that got better, over all examples.
        lost_examples: how many got worse.
        gained_examples: how many got better.
        choices: among how many answers the task chooses; None where it does not.
        lost_adjusted: ``lost`` less what guessing explains; None without ``choices``.
        gained_adjusted: ``gained`` likewise.
    """

    lost: Share
    gained: Share
    lost_examples: int
    gained_examples: int
    choices: int | None = None
    lost_adjusted: Share | None = None
    gained_adjusted: Share | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``verdict.json`` and ``scores.json`` hold it."""
        adjusted = {"lost_adjusted": self.lost_adjusted, "gained_adjusted": self.gained_adjusted}
        return {
            "lost": self.lost.to_json(),
            "gained": self.gained.to_json(),
            "lost_examples": self.lost_examples,
            "gained_examples": self.gained_examples,
            "choices": self.choices,
        } | {name: share and share.to_json() for name, share in adjusted.items()}


def transitions(
    before_N: Array,
    after_N: Array,
    choices: int | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Transitions:
    """Counts what became of each example.

    Args:
        before_N: score of each example before, 0 to 100.
        after_N: of the same examples after.
        choices: among how many answers the task chooses, for the correction.
        level: of the intervals.
        resamples: replicates of the intervals.
        seed: of the drawing.
    """
    change_N = after_N - before_N
    columns_NC = np.stack([before_N, after_N, np.maximum(-change_N, 0), np.maximum(change_N, 0)], axis=1)

    asked = [(2, None), (3, None)] + ([(2, choices), (3, choices)] if choices else [])
    tallies = [Tally(columns_NC, partial(_share, column=column, choices=k)) for column, k in asked]
    intervals = bootstrap_each(tallies, level=level, resamples=resamples, seed=seed)
    shares = [Share(tally.score, interval) for tally, interval in zip(tallies, intervals)]
    lost, gained = int((change_N < 0).sum()), int((change_N > 0).sum())
    return Transitions(shares[0], shares[1], lost, gained, choices, *shares[2:])


def choices_of(references: Sequence[Sequence[str]]) -> int | None:
    """Among how many answers a task chooses, by its references; None if they are not few and often repeated."""
    if not references or any(len(accepted) != 1 for accepted in references):
        return None
    known = {accepted[0].strip() for accepted in references}
    return len(known) if 2 <= len(known) <= min(_MOST_CHOICES, len(references) // _EACH) else None


def _share(sums_RC: Array, count: int, column: int, choices: int | None) -> Array:
    """Of column 2 or 3 the mean; with ``choices`` less what guessing explains of it."""
    mean_RC = sums_RC / count
    if choices is None:
        return mean_RC[:, column]
    wrong_RC = 1 - mean_RC[:, :2] / 100
    return np.maximum(mean_RC[:, column] - 100 * wrong_RC[:, 0] * wrong_RC[:, 1] / (choices - 1), 0)

"""How sure a score is: bootstrap intervals over examples and seeds, and a paired test between runs.

A task's answers enter as a ``Tally``, columns that are summed over examples, so that a metric of a whole task
(macro-F1) is resampled exactly as the mean of example scores is. Everything is drawn from a seeded generator: the same
answers give the same interval.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from seekr_cl.errors import DataError

Array = NDArray[np.float64]
Combine = Callable[[Array, int], Array]

LEVEL = 0.95
RESAMPLES = 2000
_EXACT = 12
"""Up to so many examples that differ, all 2^k swaps are counted instead of drawing some."""
_CELLS = 1 << 22
"""Numbers that one block of drawn weights may hold."""

CONVENTION = (
    "95% percentile bootstrap, 2000 resamples; examples are drawn with replacement within each task, the same for all "
    "seeds and stages; of several seeds, seeds are drawn as well"
)


def mean_of(sums_RC: Array, count: int) -> Array:
    """The mean of one column."""
    return sums_RC[:, 0] / count


@dataclass(frozen=True, slots=True)
class Tally:
    """A task's answers as numbers.

    Attributes:
        columns_NC: what each of N examples adds.
        combine: sums over examples (R, C) and the number of examples to R scores.
    """

    columns_NC: Array
    combine: Combine = mean_of

    def __len__(self) -> int:
        return len(self.columns_NC)

    @property
    def score(self) -> float:
        """The task's score, 0 to 100."""
        return float(self.combine(self.columns_NC.sum(0, keepdims=True), len(self))[0])


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``low`` to ``high``."""

    low: float
    high: float

    def to_json(self) -> list[float]:
        """Both ends, rounded to what they are good for."""
        return [round(self.low, 4), round(self.high, 4)]


@dataclass(frozen=True, slots=True)
class Difference:
    """What a paired test found.

    Attributes:
        value: mean score of the second less that of the first, in points.
        interval: of the value, over examples.
        p: two-sided; how often swapping answers at random gives a difference as large.
        examples: pairs compared.
        exact: all swaps were counted.
    """

    value: float
    interval: Interval
    p: float
    examples: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """One run's answers.

    Attributes:
        last: of each task after the last stage.
        learnt: of each task right after it was learned; empty where there is no such stage (multi-task training).
    """

    last: Sequence[Tally]
    learnt: Sequence[Tally] = ()

    @property
    def sizes(self) -> list[int]:
        """Examples of each task."""
        return [len(tally) for tally in self.last]


def bootstrap(tally: Tally, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of one task's score over its examples."""
    return bootstrap_each([tally], resamples=resamples, seed=seed)[0]


def bootstrap_each(
    tallies: Sequence[Tally], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> list[Interval]:
    """The intervals of several numbers of the same examples, which are drawn once for all of them."""
    values = _resampled(tallies, np.random.default_rng(seed), resamples)
    return [_percentiles(values_R, level) for values_R in values]


def paired_interval(
    first: Sequence[Tally], second: Sequence[Tally], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """The interval of a change in score over the examples, which are drawn alike before and after.

    Args:
        first: a tally a task, before.
        second: the same tasks after.
        resamples: replicates.
        seed: of the drawing.
        level: of the two-sided percentile interval.

    Returns:
        Of the mean over the tasks of the second score less the first.

    Raises:
        DataError: if tasks or numbers of examples do not fit each other.
    """
    sizes = [len(tally) for tally in first]
    if not sizes or not all(sizes) or sizes != [len(tally) for tally in second]:
        raise DataError("a paired interval needs the same examples on both sides")
    rng = np.random.default_rng(seed)
    values_R = np.zeros(resamples)
    for before, after in zip(first, second):
        earlier_R, later_R = _resampled([before, after], rng, resamples)
        values_R += (later_R - earlier_R) / len(sizes)
    return _percentiles(values_R, level)


def aggregate_intervals(
    runs: Sequence[Answered], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval | None]:
    """Intervals of OP and BWT over examples and, of several runs, over seeds.

    A replicate draws examples within each task, the same ones for all runs and stages, and then runs.

    Args:
        runs: one a seed, on the same tests.
        resamples: replicates.
        seed: of the drawing.

    Returns:
        ``op``, ``bwt`` and ``bwt_over_n``; None where a run does not have it.

    Raises:
        DataError: if the runs' tests have different sizes.
    """
    if not runs or any(run.sizes != runs[0].sizes for run in runs):
        raise DataError("the runs' tests have different sizes; an interval over seeds needs the same tests in each")
    rng = np.random.default_rng(seed)
    op_SR, change_SR = np.zeros((2, len(runs), resamples))
    tasks = len(runs[0].last)
    changes = tasks > 1 and all(len(run.learnt) == tasks for run in runs)
    for task in range(tasks):
        tallies = [run.last[task] for run in runs]
        # The last task has no later stage, so its change is none.
        earlier = [run.learnt[task] for run in runs] if changes and task < tasks - 1 else []
        values = _resampled([*tallies, *earlier], rng, resamples)
        op_SR += values[: len(runs)] / tasks
        if earlier:
            change_SR += values[: len(runs)] - values[len(runs) :]
    drawn_RS = rng.integers(len(runs), size=(resamples, len(runs)))

    def over_seeds(values_SR: Array) -> Interval:
        return _percentiles(np.take_along_axis(values_SR.T, drawn_RS, axis=1).mean(1))

    return {
        "op": over_seeds(op_SR),
        "bwt": over_seeds(change_SR / (tasks - 1)) if changes else None,
        "bwt_over_n": over_seeds(change_SR / tasks) if changes else None,
    }


def seed_interval(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of a mean over seeds alone, where the answers behind the numbers are not at hand."""
    return bootstrap(Tally(np.array(values, dtype=float)[:, None]), resamples=resamples, seed=seed)


def paired_test(
    first: Sequence[Sequence[Tally]], second: Sequence[Sequence[Tally]], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Permutation test of two runs, or of as many pairs of them as there are seeds, on the same examples.

    Under the null hypothesis it does not matter which of the two gave which answer, so an example's answers are swapped
    with probability 1/2, in all seeds at once. The statistic is the mean over tasks of the difference in score, so with
    all tasks it is the difference in OP. It speaks of these models on examples like these, not of other seeds.

    Args:
        first: of each seed, the tallies of the tasks.
        second: the same of the other run.
        resamples: swaps drawn, where not all are counted; also of the interval.
        seed: of the drawing.

    Raises:
        DataError: if seeds, tasks or numbers of examples do not fit each other.
    """
    shape = [[len(tally) for tally in run] for run in first]
    if (
        not shape
        or not shape[0]
        or shape != [[len(tally) for tally in run] for run in second]
        or len({*map(tuple, shape)}) > 1
    ):
        raise DataError("a paired test needs the same examples and as many runs on both sides")
    rng = np.random.default_rng(seed)
    pairs = [[(a[task], b[task]) for a, b in zip(first, second)] for task in range(len(shape[0]))]
    differ = [np.any([np.any(a.columns_NC != b.columns_NC, axis=1) for a, b in seeds], axis=0) for seeds in pairs]
    moving = int(sum(mask.sum() for mask in differ))
    exact = moving <= _EXACT
    swaps_RM = (
        np.array(list(product((0.0, 1.0), repeat=moving))).reshape(-1 if moving else 1, moving) if exact else None
    )
    count = len(swaps_RM) if swaps_RM is not None else resamples
    null_R, value, sampled_R = np.zeros(count), 0.0, np.zeros(resamples)
    begin = 0
    for mask, seeds in zip(differ, pairs):
        end = begin + int(mask.sum())
        given = None if swaps_RM is None else swaps_RM[:, begin:end]
        blocks = [given] if given is not None else _coins(rng, count, end - begin)
        share = 1 / (len(pairs) * len(seeds))
        row = 0
        for swap_RM in blocks:
            part = slice(row, row + len(swap_RM))
            for a, b in seeds:
                null_R[part] += share * (_swapped(b, a, mask, swap_RM) - _swapped(a, b, mask, swap_RM))
            row = part.stop
        tallies = [tally for pair in seeds for tally in pair]
        drawn = _resampled(tallies, rng, resamples)
        sampled_R += share * (drawn[1::2] - drawn[::2]).sum(0)
        value += share * sum(b.score - a.score for a, b in seeds)
        begin = end
    # Sums in another order differ in the last digit: what ties with the difference counts as reaching it.
    reached = int(np.sum(np.abs(null_R) >= abs(value) - 1e-9))
    p = reached / count if exact else (reached + 1) / (count + 1)
    return Difference(value, _percentiles(sampled_R), p, sum(shape[0]), exact)


def _swapped(own: Tally, other: Tally, mask: NDArray[np.bool_], swap_RM: Array) -> Array:
    moves_MC = (other.columns_NC - own.columns_NC)[mask]
    return own.combine(own.columns_NC.sum(0) + swap_RM @ moves_MC, len(own))


def _coins(rng: np.random.Generator, count: int, width: int) -> Iterator[Array]:
    step = max(1, _CELLS // max(1, width))
    for start in range(0, count, step):
        yield rng.integers(2, size=(min(step, count - start), width)).astype(float)


def _resampled(tallies: Sequence[Tally], rng: np.random.Generator, resamples: int) -> Array:
    """Scores (len(tallies), resamples) on examples drawn with replacement, the same ones for all tallies."""
    count = len(tallies[0])
    step = max(1, _CELLS // max(1, count))
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        # How often each example was drawn; drawing numbers and counting them is much faster than rng.multinomial.
        cells = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        weights_RN = np.bincount(cells.ravel(), minlength=rows * count).reshape(rows, count).astype(float)
        parts.append(np.stack([tally.combine(weights_RN @ tally.columns_NC, count) for tally in tallies]))
    return np.concatenate(parts, axis=1)


def _percentiles(values_R: Array, level: float = LEVEL) -> Interval:
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))

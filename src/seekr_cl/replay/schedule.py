"""When old samples are replayed among new ones: the whole task's order of micro-batches, made before training.

The list covers all epochs, so a cadence counts across epoch borders and a task of two batches still replays. It
depends on nothing but its arguments; resuming a run rebuilds the same list.
"""

import bisect
import collections
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from seekr_cl.replay.length_groups import group_by_length
from seekr_cl.replay.replay_config import ReplayConfig

REVIEWS = (1, 2, 4, 7, 15, 30)
"""Days on which what was learned is looked at again by the forgetting curve: FOREVER, Feng et al., ACL 2026, arXiv
2601.03938."""
DAYS = (*REVIEWS, 60, 90, 120)
"""The same going on, for a clock that does not end on a certain day."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Indices of new examples, of replay samples, or both when a step is joint."""

    new: tuple[int, ...] = ()
    replay: tuple[int, ...] = ()


def build_schedule(
    *,
    epochs_of: Sequence[float],
    num_replay: int,
    batch_size: int,
    replay_batch_size: int,
    cadence: ReplayConfig,
    seed: int,
    joint: bool = False,
    reshuffle: bool = True,
    replay_weights: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    replay_lengths: Sequence[int] | None = None,
    accumulation: int = 1,
) -> list[MicroBatch]:
    """The micro-batches of one task in order.

    Args:
        epochs_of: for each new example, for how many epochs it is trained on (all alike but under multi-task
            training); a fraction takes that part of the last epoch.
        num_replay: samples in the memory; 0 gives a schedule without replay.
        batch_size: new examples in a micro-batch.
        replay_batch_size: replay samples in a micro-batch.
        cadence: how often replay comes.
        seed: of the order of both.
        joint: put a replay batch into the step of the new batch it follows (eq. 13) instead of a step of its own.
        reshuffle: draw a new order each epoch; the official code keeps the first one.
        replay_weights: for each replay sample how often it comes relative to the others; default all alike.
        lengths: tokens of each new example, where examples of similar length are to share a step.
        replay_lengths: the same for replay samples; not heeded with ``replay_weights``, under which a sample that comes
            several times in a round would meet itself in one batch.
        accumulation: micro-batches of an optimizer step, which share their lengths, so that several small ones hold
            the examples of a large one.

    Returns:
        Micro-batches; every new example appears once in each of its epochs.
    """
    replay = _cycle(num_replay, replay_batch_size, seed, reshuffle, replay_weights, replay_lengths)
    batches_per_replay_epoch = math.ceil(num_replay / replay_batch_size)
    schedule: list[MicroBatch] = []
    due, given, passed = 0.0, 0, 0
    epochs = [
        _epoch(epochs_of, number, batch_size, seed, reshuffle, lengths, accumulation)
        for number in range(math.ceil(max(epochs_of, default=0)))
    ]
    curve = cadence.cadence == "forgetting_curve"
    in_advance = curve and cadence.clock == "steps"
    reviews = review_batches(sum(map(len, epochs))) if in_advance else frozenset()
    for batches in epochs:
        if cadence.cadence == "official":
            quotient = len(batches) // batches_per_replay_epoch if num_replay else 0
            _official_epoch(schedule, batches, quotient, replay)
            continue
        rate = cadence.per_new_batch(len(batches), batches_per_replay_epoch) if num_replay else 0.0
        for batch in batches:
            passed += 1
            due += rate
            # The slack absorbs rounding, so that a rate of 1/3 comes on every third batch.
            count = batches_per_replay_epoch * (passed in reviews) if curve else int(due + 1e-9) - given
            given += count
            replays = [next(replay) for _ in range(count)]
            if joint and replays:
                schedule.append(MicroBatch(new=batch, replay=sum(replays, ())))
            else:
                schedule.append(MicroBatch(new=batch))
                schedule.extend(MicroBatch(replay=indices) for indices in replays)
    return schedule


def review_batches(num_batches: int) -> frozenset[int]:
    """After which new batches, counted from 1, the memory is reviewed: the last batch ends the last day.

    All batches count alike; the paper's own clock, which goes by updates, is in ``clock``. Reviews that fall on one
    batch are one.
    """
    return frozenset(math.ceil(day * num_batches / REVIEWS[-1]) for day in REVIEWS if num_batches)


def review_rounds(
    *,
    num_replay: int,
    replay_batch_size: int,
    seed: int,
    reshuffle: bool = True,
    replay_weights: Sequence[float] | None = None,
    replay_lengths: Sequence[int] | None = None,
) -> Iterator[list[MicroBatch]]:
    """The whole memory in micro-batches, round after round without end; arguments as for ``build_schedule``."""
    replay = _cycle(num_replay, replay_batch_size, seed, reshuffle, replay_weights, replay_lengths)
    while num_replay:
        yield [MicroBatch(replay=next(replay)) for _ in range(math.ceil(num_replay / replay_batch_size))]


def _epoch(
    epochs_of: Sequence[float],
    epoch: int,
    batch_size: int,
    seed: int,
    reshuffle: bool,
    lengths: Sequence[int] | None,
    accumulation: int,
) -> list[tuple[int, ...]]:
    """An epoch's batches of new examples."""
    generator = _generator(seed, epoch if reshuffle else 0)
    order = _part_of_epoch(_permutation(len(epochs_of), generator), epochs_of, epoch)
    if lengths is not None:
        order = group_by_length(order, lengths, batch_size * accumulation, generator)
    return [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def _part_of_epoch(order: list[int], epochs_of: Sequence[float], epoch: int) -> list[int]:
    """Those of ``order`` that still have this epoch before them; of examples with half an epoch left, half."""
    by_rest: dict[float, list[int]] = {}
    for index in order:
        if epochs_of[index] > epoch:
            by_rest.setdefault(min(1.0, epochs_of[index] - epoch), []).append(index)
    taken = {index for rest, some in by_rest.items() for index in some[: max(1, round(rest * len(some)))]}
    return [index for index in order if index in taken]


def _official_epoch(
    schedule: list[MicroBatch], batches: list[tuple[int, ...]], quotient: int, replay: Iterator[tuple[int, ...]]
) -> None:
    for position, batch in enumerate(batches, start=1):
        if quotient and position % quotient == 0:
            schedule.append(MicroBatch(replay=next(replay)))
        schedule.append(MicroBatch(new=batch))


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + epoch)


def _permutation(length: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(length, generator=generator).tolist()


def _cycle(
    length: int,
    batch_size: int,
    seed: int,
    reshuffle: bool,
    weights: Sequence[float] | None,
    lengths: Sequence[int] | None,
) -> Iterator[tuple[int, ...]]:
    """Batches over the replay samples, round after round; a round's last batch may be smaller."""
    round_number = 0
    while length:
        generator = _generator(seed, round_number if reshuffle else 0)
        order = _permutation(length, generator)
        if weights is not None:
            order = _weighted(order, weights, round_number)
        elif lengths is not None:
            order = group_by_length(order, lengths, batch_size, generator)
        for start in range(0, len(order), batch_size):
            yield tuple(order[start : start + batch_size])
        round_number += 1


def _weighted(order: list[int], weights: Sequence[float], round_number: int) -> list[int]:
    """As many draws as ``order`` has, each sample as often as its weight says, rounded up or down.

    The weights stand behind one another as lengths, and what a comb of unit steps hits is drawn. The comb begins
    elsewhere each round (golden ratio), so that over rounds nothing is always rounded down.
    """
    count = len(order)
    edges = list(itertools.accumulate((weight * count / sum(weights) for weight in weights), initial=0.0))
    shift = ((round_number + 1) * 0.6180339887498949) % 1
    # The comb's teeth, not the floors of the edges: rounding must not lose or add a draw.
    hits = [min(bisect.bisect_right(edges, tooth + shift) - 1, count - 1) for tooth in range(count)]
    times = collections.Counter(hits)
    # In the round's order; what comes several times comes in even distances, not in one batch.
    places = [
        ((turn + place / count) / times[index], index)
        for place, index in enumerate(order)
        for turn in range(times[index])
    ]
    return [index for _, index in sorted(places)]

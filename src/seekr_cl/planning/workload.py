"""What is to be learned: tasks, examples, lengths; and how replay is interleaved with it."""

import math
from dataclasses import dataclass

import numpy as np

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.planning.overheads import MethodCosts, costs_of
from seekr_cl.replay.schedule import DAYS, build_schedule

COUNTED = 16
"""Tasks whose schedules are made where there are more of the same kind."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be learned.

    Attributes:
        examples: training examples of each task, in order.
        epochs: of each task.
        tokens: of a sample, prompt and answer.
        answer: tokens of the answer, the end of text among them.
    """

    examples: list[int]
    epochs: list[float]
    tokens: int
    answer: int


@dataclass(frozen=True, slots=True)
class Steps:
    """What replay adds to training, summed over all tasks.

    Attributes:
        steps: optimizer steps without replay.
        extra: optimizer steps that replay adds.
        trained: passes of an example, forward and backward, without replay.
        replayed: the same over replay samples; none where replay does not run the model.
        scored: the same in looking at samples: scoring them, choosing them, asking for the earlier model's outputs.
        own: the same for what a method does beside these, such as asking the earlier model.
        written: the same for texts that the model itself writes.
        scoring: passes that scoring one kept sample takes; they are in ``scored``.
    """

    steps: int
    extra: int
    trained: int
    replayed: int
    scored: float = 0.0
    own: float = 0.0
    written: float = 0.0
    scoring: float = 0.0

    @property
    def time_share(self) -> float:
        """What is not a new example's pass, as part of the whole time, samples being as long as examples."""
        more = self.replayed + self.scored + self.own + self.written
        return more / (self.trained + more) if self.trained + more else 0.0


def steps_of_tasks(work: Workload, config: SeekrConfig) -> list[int]:
    """Optimizer steps of each task, those of replay apart."""
    batch, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    found = []
    for count, epochs in zip(work.examples, work.epochs):
        # No batch goes across the border of two epochs.
        whole, part = divmod(epochs, 1)
        batches = int(whole) * math.ceil(count / batch) + math.ceil(round(part * count) / batch)
        found.append(math.ceil(batches / accumulation))
    return found


def count_steps(work: Workload, config: SeekrConfig, kept: list[int]) -> Steps:
    """The schedule of every task, as training makes it, counted.

    Args:
        work: what is learned.
        config: batch sizes and cadence.
        kept: samples kept of each task.
    """
    number, alike = len(kept), len(set(work.examples)) == 1 and len(set(work.epochs)) == 1
    # Of many tasks that are alike some are counted: replay grows in a straight line between them.
    places = range(number) if not alike or number <= COUNTED else _spread(number)
    counted = np.array(
        [_count_task(work.examples[n], work.epochs[n], kept[:n], config) for n in places], dtype=float
    ).reshape(-1, 4)
    sums = [float(np.interp(range(number), places, column).sum()) for column in counted.T]
    steps, extra, trained, replayed = (round(one) for one in sums)
    costs = costs_of(config.method.kind) or MethodCosts()
    return Steps(steps, extra, trained, replayed if costs.replay_runs_model else 0)


def _spread(number: int) -> list[int]:
    return sorted({round(turn * (number - 1) / (COUNTED - 1)) for turn in range(COUNTED)})


def _count_task(examples: int, epochs: float, old: list[int], config: SeekrConfig) -> tuple[int, int, int, int]:
    """Steps without replay, steps it adds, examples and replay samples passed, after tasks that kept ``old``."""
    settings, batch, method = config.replay, config.per_device_train_batch_size, config.method.kind
    # GEM keeps samples and replays none.
    costs = costs_of(method) or MethodCosts()
    num_replay = costs.replayed(config.method.settings, old, examples) if method.replays else 0
    schedule = build_schedule(
        epochs_of=[float(epochs)] * examples,
        num_replay=num_replay,
        batch_size=batch,
        replay_batch_size=settings.batch_size or batch,
        cadence=settings,
        seed=0,
        joint=settings.step == "joint",
        reshuffle=False,
    )
    alone = math.ceil(sum(bool(micro.new) for micro in schedule) / config.gradient_accumulation_steps)
    if settings.clock == "updates":
        # As if all updates were of one size.
        reviews = sum(day * settings.day_steps <= alone for day in DAYS) if num_replay else 0
        batches = math.ceil(num_replay / (settings.batch_size or batch))
        extra = reviews * math.ceil(batches / config.gradient_accumulation_steps)
        return alone, extra, sum(len(micro.new) for micro in schedule), reviews * num_replay
    return (
        alone,
        math.ceil(len(schedule) / config.gradient_accumulation_steps) - alone,
        sum(len(micro.new) for micro in schedule),
        sum(len(micro.replay) for micro in schedule),
    )

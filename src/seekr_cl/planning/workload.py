"""What is to be learnt: tasks, examples, lengths; and how replay is interleaved with it."""

import math
from dataclasses import dataclass

from seekr_cl.training.config import SeekrConfig
from seekr_cl.training.schedule import build_schedule


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be learnt.

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
        replayed: the same over replay samples.
        scored: the same in scoring: about one for each kept sample, as measured.
    """

    steps: int
    extra: int
    trained: int
    replayed: int
    scored: int

    @property
    def time_share(self) -> float:
        """Replay's and scoring's part of the whole time, samples being as long as examples."""
        whole = self.trained + self.replayed + self.scored
        return (self.replayed + self.scored) / whole if whole else 0.0


def count_steps(work: Workload, config: SeekrConfig, kept: list[int], scores: bool) -> Steps:
    """The schedule of every task, as training makes it, counted.

    Args:
        work: what is learnt.
        config: batch sizes and cadence.
        kept: samples kept of each task.
        scores: whether the kept samples go through the model once more at each task's ends.
    """
    settings, batch = config.replay_settings, config.per_device_train_batch_size
    steps = extra = trained = replayed = 0
    for number, (examples, epochs) in enumerate(zip(work.examples, work.epochs)):
        schedule = build_schedule(
            epochs_of=[float(epochs)] * examples,
            num_replay=config.method_class.num_replayed(config.method_settings, kept[:number], examples),
            batch_size=batch,
            replay_batch_size=settings.batch_size or batch,
            cadence=settings.schedule_cadence(),
            seed=0,
            joint=settings.step == "joint",
            reshuffle=False,
        )
        alone = math.ceil(sum(bool(micro.new) for micro in schedule) / config.gradient_accumulation_steps)
        steps += alone
        extra += math.ceil(len(schedule) / config.gradient_accumulation_steps) - alone
        trained += sum(len(micro.new) for micro in schedule)
        replayed += sum(len(micro.replay) for micro in schedule)
    return Steps(steps, extra, trained, replayed, sum(kept) if scores else 0)

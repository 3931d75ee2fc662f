"""What is watched of old tasks while a new one is learned, and what a drop leads to."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from seekr_cl.attention.tap import unwatched
from seekr_cl.config.retention import RetentionConfig
from seekr_cl.errors import TrainingError
from seekr_cl.evaluation.change import score_change
from seekr_cl.memory import TaskSamples
from seekr_cl.methods.answers import AnswerHead
from seekr_cl.replay.forgetting_curve import replay_now
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.training.probing import ProbeSet, measure, probability

PROBED = "retention/"
"""Before a task's name, what the log calls its mean answer probability; an action's keys begin otherwise."""


class RetentionWarning(UserWarning):
    """An old task is being lost while a new one is learned."""


class RetentionProbe(TrainerCallback):
    """Probes stored samples every so many steps, and acts once a task has surely lost more than it may.

    Each probe and each action stands in the Trainer's log, so that they are in ``training_log.json`` and in what a
    resumed training goes on from; nothing else is remembered.

    Args:
        trainer: whose model is probed.
        settings: how often, and what to do.
        sets: the old tasks' probes, with what they gave before.
        replay: the samples that are replayed, to replay more of.
        batch_size: of a pass over them.
        seed: of the order of that pass.

    Attributes:
        stopped: why training was ended, if it was.
    """

    def __init__(
        self,
        trainer: Any,
        settings: RetentionConfig,
        sets: Sequence[ProbeSet],
        replay: TaskSamples,
        batch_size: int,
        seed: int,
    ) -> None:
        self.trainer, self.settings, self.sets = trainer, settings, list(sets)
        self._names = _distinct([one.task for one in sets])
        self.replay, self.batch_size, self.seed = replay, batch_size, seed
        self.stopped: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After this a checkpoint that is due is written."""
        assert self.settings.probe_every is not None
        if state.global_step % self.settings.probe_every or state.global_step >= state.max_steps:
            return
        dropped = self._probe(state)
        for place, told in dropped.items():
            line = f"step {state.global_step}: {told}"
            action = self._act(place, line, state, control)
            note = {"retention_task": self.sets[place].task, "retention_action": action, "retention_told": told}
            state.log_history.append({"step": state.global_step, "epoch": state.epoch} | note)

    def check(self) -> None:
        """Ends the learning where a drop has stopped it.

        Raises:
            TrainingError: saying which task fell.
        """
        if self.stopped is not None:
            raise TrainingError(
                f"retention: {self.stopped}; the state is saved and nothing was replaced. Continue with --resume and "
                "retention.on_drop=warn, or begin again with more replay or a lower learning_rate"
            )

    def _probe(self, state: Any) -> dict[int, str]:
        """Asks for every task; returns what to say of those, by their place, that surely lost more than they may."""
        model = self.trainer._network
        training = model.training
        model.eval()
        try:
            with unwatched(model):
                found = [measure(model, one.probes, with_signals=False) for one in self.sets]
        finally:
            model.train(training)
        logs, dropped = {}, {}
        for place, (one, asked) in enumerate(zip(self.sets, found)):
            both = np.array([probability(one.before), probability(asked)])
            before, after = both[:, np.isfinite(both).all(0)]
            if not len(after):
                continue
            change = score_change(before, after)
            logs[PROBED + self._names[place]] = float(after.mean())
            if change.outcome(self.settings.max_drop) == "lost":
                dropped[place] = (
                    f"'{self._names[place]}' fell by {-change.value:.1f} points of answer probability "
                    f"[{change.interval.low:.1f}, {change.interval.high:.1f}], allowed {self.settings.max_drop:g}"
                )
        if logs:
            self.trainer.log(logs)
        return dropped

    def _act(self, place: int, line: str, state: Any, control: Any) -> str:
        action = self.settings.on_drop
        warnings.warn(f"retention: {line}", RetentionWarning, stacklevel=2)
        if action == "stop":
            self.stopped = self.stopped or line
            control.should_training_stop = control.should_save = True
        elif action == "more_replay":
            rounds = self._round(place, state.global_step)
            if not rounds:
                return "warn"
            replay_now(self.trainer, rounds)
        return action

    def _round(self, place: int, step: int) -> list[MicroBatch]:
        """One pass over a task's samples, in an order that depends on the step alone."""
        name, begin = self.sets[place].task, 0
        earlier = sum(one.task == name for one in self.sets[:place])
        for task in self.replay.tasks:
            length = len(task.samples)
            if task.name == name and length:
                earlier -= 1
            if task.name == name and earlier < 0:
                generator = torch.Generator().manual_seed(self.seed + step)
                order = [begin + place for place in torch.randperm(length, generator=generator).tolist()]
                size = self.batch_size
                return [MicroBatch(replay=tuple(order[at : at + size])) for at in range(0, length, size)]
            begin += length
        return []


def summary(sets: Sequence[ProbeSet], after: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``retention.json``.

    Args:
        sets: the probes with what they gave before.
        after: what they gave after, in their order.
        log: the Trainer's.
    """
    tasks = [
        {"task": one.task, "kind": one.kind, "source": one.source, "before": one.before, "after": found}
        for one, found in zip(sets, after, strict=True)
    ]
    probes = [line for line in log if any(key.startswith(PROBED) for key in line)]
    return {"tasks": tasks, "probes": probes, "actions": [line for line in log if "retention_action" in line]}


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which none is another's, so that each has a curve of its own."""
    found: list[str] = []
    for name in names:
        own, number = name, 1
        while own in found:
            number += 1
            own = f"{name} ({number})"
        found.append(own)
    return found


def measure_all(
    model: Any,
    sets: Sequence[ProbeSet],
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[dict[str, Any]]:
    """What a model knows of every task, outside of a training; of several processes all ask together.

    Args:
        model: of transformers or PEFT.
        sets: the tasks' probes.
        dtype: half precision to compute in; ``None`` is as the weights are.
        progress: told how many of all the samples have been asked about.
    """
    training, done, total = model.training, 0, sum(len(one.probes) for one in sets)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    model.eval()
    try:
        return [measure(model, one.probes, dtype=dtype, advance=advance) for one in sets]
    finally:
        model.train(training)
        AnswerHead.take_off(model)

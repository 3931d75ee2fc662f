"""What is watched of old tasks while a new one is learned, and what a drop leads to."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from seekr_cl.attention.tap import unwatched
from seekr_cl.config.retention import RetentionConfig
from seekr_cl.errors import TrainingError
from seekr_cl.evaluation.change import score_change
from seekr_cl.memory import TaskSamples
from seekr_cl.replay.forgetting_curve import replay_now
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.training.probing import ProbeSet, measure, probability


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
        self.replay, self.batch_size, self.seed = replay, batch_size, seed
        self.stopped: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After this a checkpoint that is due is written."""
        assert self.settings.probe_every is not None
        if state.global_step % self.settings.probe_every or state.global_step >= state.max_steps:
            return
        dropped = self._probe(state)
        for name, told in dropped.items():
            line = f"step {state.global_step}: {told}"
            action = self._act(name, line, state, control)
            note = {"retention_task": name, "retention_action": action, "retention_told": told}
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

    def _probe(self, state: Any) -> dict[str, str]:
        """Asks for every task; returns what to say of those that surely lost more than they may."""
        model = self.trainer._network
        training = model.training
        model.eval()
        try:
            with unwatched(model):
                found = [measure(model, one.probes, with_signals=False) for one in self.sets]
        finally:
            model.train(training)
        logs, dropped = {}, {}
        for one, asked in zip(self.sets, found):
            before, after = probability(one.before), probability(asked)
            change = score_change(np.array(before), np.array(after))
            logs[f"retention_{one.task}"] = sum(after) / len(after)
            if change.outcome(self.settings.max_drop) == "lost":
                dropped[one.task] = (
                    f"'{one.task}' fell by {-change.value:.1f} points of answer probability "
                    f"[{change.interval.low:.1f}, {change.interval.high:.1f}], allowed {self.settings.max_drop:g}"
                )
        self.trainer.log(logs)
        return dropped

    def _act(self, name: str, line: str, state: Any, control: Any) -> str:
        action = self.settings.on_drop
        warnings.warn(f"retention: {line}", RetentionWarning, stacklevel=2)
        if action == "stop":
            self.stopped = self.stopped or line
            control.should_training_stop = control.should_save = True
        elif action == "more_replay":
            rounds = self._round(name, state.global_step)
            if not rounds:
                return "warn"
            replay_now(self.trainer, rounds)
        return action

    def _round(self, name: str, step: int) -> list[MicroBatch]:
        """One pass over a task's samples, in an order that depends on the step alone."""
        begin = 0
        for task in self.replay.tasks:
            length = len(task.samples)
            if task.name == name:
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
    told = [line for line in log if any(key.startswith("retention_") for key in line)]
    actions = [line for line in told if "retention_action" in line]
    return {"tasks": tasks, "probes": [line for line in told if line not in actions], "actions": actions}


def measure_all(model: Any, sets: Sequence[ProbeSet]) -> list[dict[str, Any]]:
    """What a model knows of every task; of several processes all ask together."""
    training = model.training
    model.eval()
    try:
        return [measure(model, one.probes) for one in sets]
    finally:
        model.train(training)

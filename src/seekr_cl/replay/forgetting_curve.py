"""FOREVER's clock: time is how far the optimizer has moved the weights, and on its days the memory is reviewed.

Feng et al., "FOREVER: Forgetting Curve-Inspired Memory Replay for Language Model Continual Learning", ACL 2026, arXiv
2601.03938: the size of a step's update is Delta_t = ||theta_t - theta_{t-1}||_2 over the trained weights, a task's
time tau_t the sum of these since it began, a day the time that its first S = 24 steps take; the memory is replayed when
tau_t reaches d days, for each d of ``DAYS``. When that is nobody knows before training, so reviews stand in no
schedule: they come between two steps of the Trainer's. The formulas and S are from public notes on the paper, which
could not be opened itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import TrainerCallback

from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import is_sharded, local
from seekr_cl.replay.schedule import DAYS, MicroBatch

_SLACK = 1e-5
"""Of a day's time: clipped gradients make plain descent's steps all equally long, and rounding must not decide."""


class UpdateClock:
    """The time of one task. Steps count in which new examples take part; what a review moves does not.

    Args:
        day_steps: S, steps that make the first day.

    Attributes:
        time: tau, summed up so far.
        steps: how many steps that were.
        day: the time that a day takes; ``None`` before the first is over.
    """

    def __init__(self, day_steps: int) -> None:
        self.day_steps = day_steps
        self.time, self.steps = 0.0, 0
        self.day: float | None = None
        self._weights: Sequence[Tensor] = ()
        self._former: list[Tensor] = []

    def before_step(self, weights: Sequence[Tensor]) -> None:
        """Remembers the trained weights, or of sharded ones this process's part, as they are before a step."""
        self._weights = weights
        self._former = [local(weight).detach().clone() for weight in weights]

    @torch.no_grad()
    def after_step(self) -> None:
        """Goes on by the size of the update; the same in all processes."""
        squares = torch.zeros(2, dtype=torch.float64)
        for weight, former in zip(self._weights, self._former, strict=True):
            moved = former.sub_(local(weight))
            squares[int(is_sharded(weight))] += torch.linalg.vector_norm(moved, dtype=torch.float64).square().cpu()
        self._weights, self._former = (), []
        # What all processes hold alike is counted once: they have to agree to the last bit on when a review comes.
        alike, apart = collectives.all_reduce_sum(squares).tolist()
        self.time += (alike / collectives.world_size() + apart) ** 0.5
        self.steps += 1
        if self.steps == self.day_steps:
            self.day = self.time

    @property
    def days(self) -> float:
        """Days that have passed; 0 before a day's length is known."""
        return self.time / self.day if self.day else 0.0

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"time": self.time, "steps": self.steps, "day": self.day}

    def load_state(self, content: dict[str, Any]) -> None:
        """Takes what ``state`` gave."""
        self.time, self.steps, self.day = content["time"], content["steps"], content["day"]


class Reviews(TrainerCallback):
    """Holds a review of the whole memory whenever one of ``DAYS`` has come; days that come in one step are one review.

    Args:
        clock: of the task.
        rounds: the memory's micro-batches, round after round.

    Attributes:
        trainer: whose steps they stand between.
        days_seen: how many of ``DAYS`` have come.
        held: how many reviews that were.
    """

    def __init__(self, clock: UpdateClock, rounds: Iterator[list[MicroBatch]]) -> None:
        self.clock, self.rounds = clock, rounds
        self.trainer: Any = None
        self.days_seen, self.held = 0, 0
        self._reviewing = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step on new examples is about to be made."""
        self.clock.before_step(self.trainer._trained)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It has been made; a review's steps come here too."""
        if not self._reviewing:
            self.clock.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradients are gone, and a checkpoint that is due is written after this."""
        seen = sum(day * (1 - _SLACK) <= self.clock.days for day in DAYS)
        if seen == self.days_seen:
            return
        self.days_seen = seen
        self._reviewing = True
        try:
            replay_now(self.trainer, next(self.rounds))
        finally:
            self._reviewing = False
        self.held += 1

    def log(self) -> dict[str, float]:
        """For a line of the log."""
        return {"model_days": self.clock.days, "reviews": self.held}

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"clock": self.clock.state(), "days_seen": self.days_seen, "held": self.held}

    def load_state(self, content: dict[str, Any]) -> None:
        """Takes what ``state`` gave."""
        self.clock.load_state(content["clock"])
        self.days_seen = content["days_seen"]
        for _ in range(content["held"] - self.held):
            next(self.rounds)
        self.held = content["held"]


def replay_now(trainer: Any, micro_batches: list[MicroBatch]) -> None:
    """Micro-batches in optimizer steps of their own, as the Trainer makes them; its learning rate stays where it is."""
    accelerator, model, size = trainer.accelerator, trainer.model_wrapped, trainer.args.gradient_accumulation_steps
    always = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
    for start in range(0, len(micro_batches), size):
        group = micro_batches[start : start + size]
        trainer.current_gradient_accumulation_steps = len(group)
        for number, micro in enumerate(group, start=1):
            last = number == len(group)
            accelerator.gradient_state._set_sync_gradients(last)
            inputs = send_to_device(trainer._batches.made(micro), trainer.args.device)
            with nullcontext() if last or always else accelerator.no_sync(model):
                trainer.training_step(model, inputs)
            trainer.current_flos += float(trainer.floating_point_ops(inputs))
        norm = trainer._clip_grad_norm(model) if trainer.args.max_grad_norm > 0 else None
        trainer._get_grad_norm(model, norm)
        trainer.optimizer.step()
        trainer.callback_handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
        model.zero_grad()
        trainer.review_steps += 1

"""``task_loss`` in a task: what the model says before it, and that the method asks for the weighted loss."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import reshard
from seekr_cl.errors import ConfigError
from seekr_cl.methods import Context
from seekr_cl.methods.common.sample_passes import losses_of, similar_batches
from seekr_cl.methods.task_loss import BeforeWeights, TaskLoss, TaskLossSettings
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.tasks import Encoded
from seekr_cl.training.progress import console, counting


def weigh(config: SeekrConfig, context: Context) -> TaskLoss | None:
    """The weighted loss of the task whose examples the context has; ``None`` for the plain one.

    A resumed task asks the model before it once more, which says the same.

    Raises:
        ConfigError: if the weights leave nothing to learn.
    """
    settings: TaskLossSettings | None = config.task_loss
    if settings is None:
        return None
    if not isinstance(settings, BeforeWeights):
        return TaskLoss(settings)
    weights = settings.of_examples(_losses(context, config))
    if collectives.is_main() and config.progress != "none":
        learnt = sum(int((weight_A > 0).sum()) for weight_A in weights) / max(1, sum(map(len, weights)))
        mean = float(torch.cat(weights).mean())
        console().print(f"task_loss {settings.name}: {learnt:.0%} of the tokens are learnt, mean weight {mean:.2f}")
    return TaskLoss(settings, weights)


def _losses(context: Context, config: SeekrConfig) -> list[Tensor]:
    """Each example's negative log-probabilities [A], which depend on no other example's."""
    examples: Sequence[Encoded] = context.examples
    own: dict[int, dict[str, Tensor]] = {}
    batches = similar_batches([len(one.input_ids) for one in examples], context.model)
    with counting("task_loss", len(examples), config.progress) as advance:
        for number, counts in collectives.shard_indices(len(batches)):
            batch = [examples[place] for place in batches[number]]
            ids = [torch.tensor(one.input_ids) for one in batch]
            found = losses_of(context.model, ids, [one.spans for one in batch])
            if counts:
                own |= {place: {"loss": loss_A} for place, loss_A in zip(batches[number], found)}
            advance(len(batch))
    reshard(context.model)
    return [one["loss"] for one in collectives.gather_sharded(own, len(examples))]


class RequireUse(TrainerCallback):
    """Stops after the first batch of new examples if the method has a loss of its own in place of the weighted one.

    Args:
        loss: the weighted one.
        method: the method's name.
        schedule: the task's micro-batches.
        accumulation: of them in an optimizer step.
    """

    def __init__(self, loss: TaskLoss, method: str, schedule: Sequence[MicroBatch], accumulation: int) -> None:
        self._loss, self._method, self._accumulation = loss, method, accumulation
        self._new = [place for place, micro in enumerate(schedule) if micro.new]
        self._due: float = math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step that has such a batch, of those that are still to come."""
        steps = (place // self._accumulation for place in self._new)
        self._due = next((step + 1 for step in steps if step >= state.global_step), math.inf)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks once there has been such a batch."""
        if state.global_step >= self._due and not self._loss.used:
            raise ConfigError(
                f"task_loss: would be ignored: method {self._method} has a loss of its own on new examples, without "
                "methods.base.task_term; remove task_loss"
            )

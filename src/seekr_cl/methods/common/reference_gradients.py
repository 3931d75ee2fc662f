"""What GEM and A-GEM share: kept samples that are never trained on, but whose gradients a step must not go against."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seekr_cl.distributed import collectives
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, task_generator
from seekr_cl.methods.common.gradients import mean_gradient


class ReferenceMethod(Method):
    """Keeps samples, and takes gradients of them before each step."""

    memory = "kept"
    weight_access = "sharded"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.old: list[MemoryTask] = []
        self.step = 0
        self._batch_size = 1

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """Notes the old tasks that have samples."""
        self.old = [task for task in tasks if len(task.samples)]
        if tasks and not self.old:
            self.context.warn(f"the memory holds no samples, so {self.name} is plain fine-tuning on this task")
        return tasks

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss; the batch's size is what fits into memory."""
        # The same in all processes, or they would round differently and drift apart.
        self._batch_size = collectives.all_reduce_max(len(batch["labels"]))
        return super().new_task_loss(model, batch)

    def draw(self, count: int, total: int, number: int = 0) -> list[int]:
        """``count`` of ``total`` places, or all, drawn by the task's seed, this step and a ``number``."""
        if count >= total:
            return list(range(total))
        # The draws of a step have seeds of their own, so that a resumed task draws what it would have drawn.
        generator = task_generator(self.context.seed + self.step * (len(self.old) + 1) + number)
        return torch.randperm(total, generator=generator)[:count].tolist()

    def reference(self, samples: Sequence[ReplaySample]) -> dict[str, Tensor]:
        """The gradient of the mean loss over the samples' answer tokens, by weight, at the weights of this step."""
        # Evaluation mode switches checkpointing off, so what fits then is not a batch but one sample at a time.
        checkpointed = any(getattr(part, "gradient_checkpointing", False) for part in self.context.model.modules())
        size = 1 if checkpointed else self._batch_size
        examples = [sample.encoded for sample in samples]
        return mean_gradient(self.context, examples, size)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """How many steps have been made, which the draws depend on."""
        return {}, {"step": self.step}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Goes on drawing where it stopped."""
        self.step = content["step"]

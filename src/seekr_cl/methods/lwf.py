"""LwF: on the new task's own data, the model's outputs stay near those of the model as it was before the task."""

from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper
from seekr_cl.methods.common.former_model import label_and_divergence_terms
from seekr_cl.methods.common.gradients import frozen_copy
from seekr_cl.settings import Ge, Gt, Hint, Settings


@dataclass(frozen=True, kw_only=True)
class LwFSettings(Settings):
    """Settings of LwF.

    Attributes:
        strength: lambda_o of the paper's algorithm, the weight of the old outputs; the paper's 1.
        temperature: T of eq. 4, by which both sides' logits are divided; the paper's 2.
    """

    strength: Annotated[float, Ge(0), Hint("0 is plain fine-tuning")] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0


class LwF(Method):
    """L = L_task + lambda_o L_old, with L_old the divergence from the earlier model's softened outputs (eq. 2 to 4).

    The paper's old task is what a pretrained network could do, so this holds from the first task on. Eq. 3 is a cross
    entropy; here the teacher's entropy is taken off, so that 0 means that nothing has moved (the gradient is the same).
    The paper's T^2 is one: it does not scale the term up again. Its warm-up of a new output layer has no place in a
    language model.

    The earlier model is held beside the trained one; weights that are not trained, as under adapters, are shared.
    """

    name = "lwf"
    paper = Paper("Learning without Forgetting", "Li and Hoiem, 2016", "https://arxiv.org/abs/1606.09282")
    Settings = LwFSettings
    frozen_copy = True

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self._teacher: nn.Module | None = frozen_copy(context.model)

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss and the distance from the earlier model's outputs."""
        loss, strength, temperature = self.context.task_loss, self.settings.strength, self.settings.temperature
        task, old = label_and_divergence_terms(loss, model, batch, self._teacher, strength, temperature)
        return {"task": task, "old_outputs": old}

    def close(self) -> None:
        """Gives the earlier model's memory back."""
        self._teacher = None

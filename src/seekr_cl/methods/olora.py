"""O-LoRA: each task gets a low-rank adapter in a subspace orthogonal to those of the earlier tasks."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult
from seekr_cl.methods.common.lora import AdapterSettings, attach, lora_layers, merged
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.query_adapters import ADAPTER
from seekr_cl.settings import Ge, Hint


@dataclass(frozen=True, kw_only=True)
class OLoraSettings(AdapterSettings):
    """Settings of O-LoRA; the defaults are those of the paper's T5 and LLaMA experiments.

    Attributes:
        lambda1: weight of the orthogonality term (the official scripts go up to 5 for single tasks of the long order).
        lambda2: weight of the squared norm of the new adapter, all entries together. The paper has no such term. The
            official code's is another one: the sum of the matrices' norms, not squared, with weights of up to 0.3.
        orthogonality: ``squared`` entries of A_i A_t^T (eq. 8), or ``absolute`` ones as in the official code.
    """

    lambda1: Annotated[float, Ge(0), Hint("0 switches the term off")] = 0.5
    lambda2: Annotated[float, Ge(0), Hint("0 switches the term off")] = 0.0
    orthogonality: Literal["squared", "absolute"] = "squared"


class OLora(Method):
    """L = L_task + lambda1 sum_{i<t} |A_i A_t^T|^2 (+ lambda2 |theta_t|^2).

    A_i are the down-projections of earlier tasks' adapters, which are merged into the weights: W = W_0 + sum B_i A_i
    holds them as frozen as adapters beside the weights would.
    """

    name = "olora"
    paper = Paper(
        "Orthogonal Subspace Learning for Language Model Continual Learning",
        "Wang et al., 2023",
        "https://arxiv.org/abs/2310.14152",
    )
    Settings = OLoraSettings
    training_defaults = TrainingDefaults(
        learning_rate=1e-3,
        later_learning_rate=1e-4,
        lr_scheduler_type="constant",
        reason="official code, scripts_llama/order_1.sh (T5: 1e-3 for all tasks)",
    )
    adapters = True
    weight_access = "whole"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        context.model = attach(context.model, settings.lora(), context.seed)
        self._down = {name: cast(Tensor, layer.lora_A[ADAPTER].weight) for name, layer in lora_layers(context.model)}
        self._earlier: dict[str, Tensor] = {}
        if context.previous_state is not None:
            self._earlier = {
                name: tensor.to(context.model.device) for name, tensor in context.previous_state[0].items()
            }
            now = {name: down.shape[1] for name, down in self._down.items()}
            if now != {name: tensor.shape[1] for name, tensor in self._earlier.items()}:
                raise MemoryFormatError(
                    "olora: the memory carries on subspaces of other layers than those adapted now; keep "
                    "method.targets as it was, or begin a new memory"
                )

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss, the orthogonality to earlier subspaces and the new adapter's norm."""
        terms = super().new_task_loss(model, batch)
        if self._earlier:
            size = Tensor.square if self.settings.orthogonality == "squared" else Tensor.abs
            overlaps = [size(self._earlier[name] @ down.float().mT).sum() for name, down in self._down.items()]
            terms["orthogonality"] = LossTerm(torch.stack(overlaps).sum(), self.settings.lambda1, of_weights=True)
        if self.settings.lambda2:
            trained = [weight for weight in self.context.model.parameters() if weight.requires_grad]
            norm = torch.stack([weight.float().square().sum() for weight in trained]).sum()
            terms["norm"] = LossTerm(norm, self.settings.lambda2, of_weights=True)
        return terms

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Leaves the subspaces of all tasks so far: by layer [tasks * rank, inputs]."""
        fresh = {layer: down.detach().float() for layer, down in self._down.items()}
        subspaces = {layer: torch.cat([self._earlier[layer], a]) if self._earlier else a for layer, a in fresh.items()}
        return TaskResult(MemoryTask(name, samples), next_state=(subspaces, {}))

    def finished_model(self) -> PreTrainedModel:
        """The model with the task's adapter merged."""
        return merged(self.context.model)

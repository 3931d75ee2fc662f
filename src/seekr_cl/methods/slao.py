"""SLAO: one low-rank adapter for all tasks, begun orthogonally in each and merged with what it was.

Shapes: R rank, I a layer's inputs, O its outputs.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Context, Method, Paper, TaskResult
from seekr_cl.methods.common.lora import AdapterSettings, lora_layers, one_lora, own_adapter
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.query_adapters import ADAPTER


class SLAO(Method):
    """L = L_task on an adapter that task t begins with A = Q^T, B = B_{t-1} and ends with B += (B_t - B) / sqrt(t).

    Q is the orthonormal basis of A_{t-1}^T by a QR decomposition with a positive diagonal, B_{t-1} the up-projection as
    the last task left it *before* merging; the merged adapter is (A_t, B). What is written and scored is the merged one
    beside the base model's weights; the memory carries B_t on, so that all is of constant size.
    """

    name = "slao"
    paper = Paper(
        "Merge before Forget: A Single LoRA Continual Learning via Continual Merging",
        "Qiao and Mahdavi, ICLR 2026",
        "https://arxiv.org/abs/2512.23017",
    )
    Settings = AdapterSettings
    training_defaults = TrainingDefaults(
        learning_rate=1e-4, reason="the paper's for Llama-2-7B-chat; the scheduler is not said"
    )
    adapters = True
    weight_access = "whole"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        later = self.goes_on_from(context.model)
        model = context.model = own_adapter(settings, context.model, later, context.seed)
        self._tasks = 0
        self._down = {name: cast(nn.Parameter, layer.lora_A[ADAPTER].weight) for name, layer in lora_layers(model)}
        self._up = {name: cast(nn.Parameter, layer.lora_B[ADAPTER].weight) for name, layer in lora_layers(model)}
        self._merged = {name: up.detach().clone() for name, up in self._up.items()}
        if later:
            self._begin()

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a model comes with one low-rank adapter."""
        return one_lora(model)

    @torch.no_grad()
    def _begin(self) -> None:
        """Where a later task begins."""
        tensors, content = self.context.previous_state or ({}, {"tasks": 0})
        if {n: t.shape for n, t in tensors.items()} != {n: up.shape for n, up in self._up.items()}:
            raise MemoryFormatError(
                "slao: the memory does not carry on the adapter that the model comes with; use the memory that was "
                "written with it, keep method.targets and method.rank, or begin with the base model"
            )
        self._tasks = content["tasks"]
        for name, down in self._down.items():
            down.copy_(orthonormal(down))
            self._up[name].copy_(tensors[name])

    @torch.no_grad()
    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Merges; leaves the up-projections [O, R] as the task has trained them, by layer."""
        trained = {layer: up.detach().cpu().clone() for layer, up in self._up.items()}
        share = 1 / math.sqrt(self._tasks + 1)
        for layer, up in self._up.items():
            # From the first task there is only its own.
            up.copy_(torch.lerp(self._merged[layer].to(up), up, share) if self._tasks else up)
        return TaskResult(MemoryTask(name, samples), next_state=(trained, {"tasks": self._tasks + 1}))

    def finished_model(self) -> PreTrainedModel:
        """The model with the merged adapter."""
        cast(Any, self.context.model).disable_input_require_grads()
        return self.context.model


def orthonormal(down_RI: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, [R, I], the same for the same matrix: R's diagonal is positive."""
    q_IR, r_RR = torch.linalg.qr(down_RI.float().mT)
    sign_R = torch.where(r_RR.diagonal() < 0, -1.0, 1.0)
    return (q_IR * sign_R).mT.to(down_RI.dtype)

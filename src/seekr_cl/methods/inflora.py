"""InfLoRA: each task gets a low-rank adapter that sees its inputs only where the earlier tasks' inputs are not.

Shapes: I a layer's inputs, O its outputs, R rank, K kept directions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Context, Method, Paper, TaskResult
from seekr_cl.methods.common.gradients import drawn
from seekr_cl.methods.common.lora import AdapterSettings, attach, lora_layers, merged
from seekr_cl.methods.common.sample_passes import SamplePass
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.query_adapters import ADAPTER
from seekr_cl.settings import Ge, Gt, Le, Lt

NOTHING_LEFT = 1e-6
"""A direction with less than this part of the inputs' squared norm is rounding."""


@dataclass(frozen=True, kw_only=True)
class InfLoRASettings(AdapterSettings):
    """Settings of InfLoRA.

    Attributes:
        dropout: on the adapter's input, in training.
        threshold: epsilon: the kept directions hold at least this part of the squared norm of each task's inputs.
            Higher forgets less, and leaves later tasks less to learn with.
        input_samples: training examples whose inputs are looked at, before a task and after it.
    """

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    threshold: Annotated[float, Gt(0), Le(1)] = 0.995
    input_samples: Annotated[int, Ge(1)] = 256


class InfLoRA(Method):
    """L = L_task on W + A_t B_t with B_t [R, I] fixed: what A_t learns moves W within the span of B_t's rows.

    H_t are a layer's inputs on the new task, M the orthonormal directions kept of the earlier tasks' inputs. The rows
    of B_t are the R principal directions of H_t - M^T M H_t, so that inputs within M's span pass the adapter as zero;
    A_t begins at zero. After the task M takes in the fewest principal directions of what it misses of H_t with which
    ||M H_t||^2 >= epsilon ||H_t||^2 (GPM), and A_t B_t is added to W.

    All follows from H H^T, which is summed up example by example, all tokens alike. The paper keeps M's complement
    where that is smaller (DualGPM), which is the same space. Deviations: epsilon does not grow towards 1 with the
    task's number, since nobody says how many tasks will come; every adapted layer has an M of its own.
    """

    name = "inflora"
    paper = Paper(
        "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning",
        "Liang and Li, CVPR 2024",
        "https://arxiv.org/abs/2404.00228",
    )
    Settings = InfLoRASettings
    training_defaults = TrainingDefaults(
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        reason="published scripts of InfLoRA under GainLoRA's gates (T5); the paper's own are for image models",
    )
    adapters = True
    weight_access = "whole"
    settings: InfLoRASettings

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        context.model = attach(context.model, settings.lora(), context.seed)
        for down in adapter_downs(self.context.model).values():
            down.requires_grad_(False)
        now = {name: down.shape[1] for name, down in adapter_downs(self.context.model).items()}
        if context.previous_state and now != {name: basis.shape[1] for name, basis in self._kept().items()}:
            raise MemoryFormatError(
                "inflora: the memory carries on directions of other layers than those adapted now; keep method.targets "
                "as it was, or begin a new memory"
            )

    def _kept(self) -> dict[str, Tensor]:
        """M by layer, as the memory has it."""
        return dict(self.context.previous_state[0]) if self.context.previous_state else {}

    @torch.no_grad()
    def before_task(self, samples: list[ReplaySample]) -> None:
        """Chooses the directions in which the task will be learned."""
        kept, short = self._kept(), 0
        downs = adapter_downs(self.context.model)
        for name, moment_II in self._moments().items():
            basis_KI = kept.get(name, torch.empty(0, len(moment_II))).to(moment_II)
            rows_RI = directions(moment_II, basis_KI, self.settings.rank)
            short += not rows_RI[-1].any()
            downs[name].copy_(rows_RI)
        if short:
            self.context.warn(
                f"inflora: in {short} of {len(downs)} layers the earlier tasks leave fewer than {self.settings.rank} "
                "directions to learn in; lower method.threshold or method.rank"
            )

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The chosen directions, which no checkpoint of trained weights has."""
        return {name: down.detach() for name, down in adapter_downs(self.context.model).items()}, {}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""
        for name, down in adapter_downs(self.context.model).items():
            down.copy_(tensors[name])

    @torch.no_grad()
    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Leaves the directions of all tasks so far, by layer [K, I]."""
        kept, found = self._kept(), dict[str, Tensor]()
        for layer, moment_II in self._moments().items():
            basis_KI = kept.get(layer, torch.empty(0, len(moment_II))).to(moment_II)
            found[layer] = grown(basis_KI, moment_II, self.settings.threshold).cpu()
        return TaskResult(MemoryTask(name, samples), next_state=(found, {}))

    def _moments(self) -> dict[str, Tensor]:
        """H H^T [I, I] of every adapted layer over the task's inputs; every process looks at all of them."""
        model = self.context.model
        with _watched(model) as moments:
            for example in drawn(self.context, self.settings.input_samples):
                # One at a time, so that layers which see some of the tokens (experts) never see padding.
                ids_L = torch.tensor(example.input_ids)
                SamplePass(model, [ids_L], [len(ids_L) - 1])
        return moments

    def finished_model(self) -> PreTrainedModel:
        """The model with the task's adapter merged."""
        return merged(self.context.model)


def adapter_downs(wrapped: Any) -> dict[str, nn.Parameter]:
    """B_t by layer."""
    return {name: cast(nn.Parameter, layer.lora_A[ADAPTER].weight) for name, layer in lora_layers(wrapped)}


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, Tensor]]:
    """Inside, every pass adds to the moments of the adapted layers' inputs; those of no pass are zero."""
    moments: dict[str, Tensor] = {}
    handles = []
    layers, downs = dict(lora_layers(model)), adapter_downs(model)
    for name, down in downs.items():
        moments[name] = torch.zeros(down.shape[1], down.shape[1], device=down.device)

        def add(module: nn.Module, inputs: Any, moment_II: Tensor = moments[name]) -> None:
            input_NI = inputs[0].detach().flatten(0, -2).float()
            moment_II.addmm_(input_NI.mT, input_NI)

        handles.append(cast(nn.Module, layers[name]).register_forward_pre_hook(add))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def directions(moment_II: Tensor, basis_KI: Tensor, rank: int) -> Tensor:
    """The principal directions [R, I] of inputs outside of a span, orthonormal; zero where there are no more.

    Args:
        moment_II: H H^T.
        basis_KI: orthonormal directions of the span.
        rank: R.
    """
    value_I, row_II = _outside(moment_II, basis_KI)
    rows_RI = torch.zeros(rank, moment_II.shape[1], device=moment_II.device)
    found = min(rank, int((value_I > NOTHING_LEFT * moment_II.trace()).sum()))
    rows_RI[:found] = row_II[:found]
    return rows_RI


def grown(basis_KI: Tensor, moment_II: Tensor, threshold: float) -> Tensor:
    """The basis with the fewest directions more that hold the threshold's part of the inputs' squared norm.

    Args:
        basis_KI: orthonormal.
        moment_II: H H^T.
        threshold: epsilon.
    """
    value_I, row_II = _outside(moment_II, basis_KI)
    whole = moment_II.trace()
    held_I = (basis_KI @ moment_II * basis_KI).sum() + torch.cat([value_I.new_zeros(1), value_I.cumsum(0)])
    # What is left of rounding is never taken in, whatever the threshold.
    more = min(
        int((held_I < threshold * whole).sum()),
        int((value_I > NOTHING_LEFT * whole).sum()),
    )
    return torch.cat([basis_KI, row_II[:more]])


def _outside(moment_II: Tensor, basis_KI: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, falling, and left singular vectors (as rows) of H less its part in a span."""
    across_II = torch.eye(len(moment_II), device=moment_II.device) - basis_KI.mT @ basis_KI
    value_I, column_II = torch.linalg.eigh(across_II @ moment_II @ across_II)
    # Rounding leaves parts in the span, which would grow from task to task.
    row_II = (column_II.mT @ across_II).flip(0)
    row_II = row_II / row_II.norm(dim=1, keepdim=True).clamp_min(NOTHING_LEFT)
    # A direction and its reverse are the same; the larger side is the positive one.
    largest_I1 = row_II.gather(1, row_II.abs().argmax(1, keepdim=True))
    return value_I.flip(0).clamp_min(0), row_II * torch.where(largest_I1 < 0, -1.0, 1.0)

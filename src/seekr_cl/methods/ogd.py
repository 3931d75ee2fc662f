"""OGD: steps are orthogonal to the directions in which old tasks' outputs change; no sample is kept."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from seekr_cl.distributed.dtensor import joined, like, local
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Context, Method, Paper, TaskResult
from seekr_cl.methods.common.gradients import (
    across,
    check_names,
    drawn,
    example_gradients,
    inner,
    put_gradients,
    step_gradients,
    trained,
)
from seekr_cl.methods.training_defaults import PLAIN_DESCENT
from seekr_cl.settings import Ge, Settings

DEPENDENT = 1e-4
"""A direction of which the kept ones leave less than this part is in their span, up to rounding."""


@dataclass(frozen=True, kw_only=True)
class OGDSettings(Settings):
    """Settings of OGD.

    Attributes:
        directions: kept of each task, one a training example drawn at random; the paper's 200. Each is as large as the
            trained weights in float32, and all of them stay on the model's device.
        logits: whose gradient is a direction: ``ground_truth``, the logit of the right token (the paper's OGD-GTL,
            which it uses throughout), or ``average``, the mean over the vocabulary (OGD-AVE); both as a mean over the
            answer's tokens.
    """

    directions: Annotated[int, Ge(1)] = 200
    logits: Literal["ground_truth", "average"] = "ground_truth"


class OGD(Method):
    """L = L_task, with g - sum_v (g . v) v, v the orthonormal directions of old tasks (algorithm 1).

    It is the gradient that is projected, before it is clipped. Under plain gradient descent, as in the paper, the step
    is orthogonal too; moments (Adam) and weight decay bring parts of the directions back.
    """

    name = "ogd"
    paper = Paper(
        "Orthogonal Gradient Descent for Continual Learning",
        "Farajtabar et al., 2020",
        "https://arxiv.org/abs/1910.07104",
    )
    Settings = OGDSettings
    training_defaults = PLAIN_DESCENT
    weight_access = "sharded"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self._basis: dict[str, Tensor] = {}
        if context.previous_state is not None:
            self._basis = dict(context.previous_state[0])
            check_names(context.model, {name: tensor[0] for name, tensor in self._basis.items()}, self.name)

    def before_step(self, model: nn.Module) -> None:
        """Takes the old tasks' directions out of the gradient."""
        if self._basis:
            self._place()
            put_gradients(model, without_span(step_gradients(model), self._basis))

    def _place(self) -> dict[str, nn.Parameter]:
        """The trained weights; of the directions this process keeps what it holds of them."""
        weights = trained(self.context.model)
        for name, basis in self._basis.items():
            if basis.shape[1:] != local(weights[name]).shape or basis.device != weights[name].device:
                self._basis[name] = local(like(basis, weights[name], lead=1))
        return weights

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Adds directions of the task at the weights that it ended with, by Gram-Schmidt; [K, ...] of every weight."""
        examples = drawn(self.context, self.settings.directions)
        weights = self._place()
        old = len(next(iter(self._basis.values()))) if self._basis else 0
        basis = {
            weight: torch.zeros(old + len(examples), *local(tensor).shape, device=tensor.device)
            for weight, tensor in weights.items()
        }
        for weight, tensor in self._basis.items():
            basis[weight][:old] = tensor
        count = old
        for gradients in example_gradients(self.context, examples, lambda: LOGITS[self.settings.logits]):
            direction = {weight: gradient.float() for weight, gradient in gradients.items()}
            whole = _norm(direction)
            # Once is not enough in float32 where little is left of a direction.
            for _ in range(2):
                direction = without_span(direction, {weight: tensor[:count] for weight, tensor in basis.items()})
            left = _norm(direction)
            if left > DEPENDENT * whole:
                for weight, part in direction.items():
                    basis[weight][count] = local(part) / left
                count += 1
        state = None
        if count:
            kept = {weight: joined(tensor[:count].clone(), weights[weight], lead=1) for weight, tensor in basis.items()}
            state = kept, {"directions": count}
        return TaskResult(MemoryTask(name, samples), next_state=state)


def without_span(gradient: dict[str, Tensor], basis: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an orthonormal basis leaves of a gradient.

    Args:
        gradient: by weight.
        basis: [K, ...] of each weight, or of what this process holds of it.
    """
    own_K = torch.stack([basis[name].flatten(1) @ local(part).flatten() for name, part in gradient.items()]).sum(0)
    along_K = across(own_K, gradient)
    return {
        name: joined(local(part) - torch.tensordot(along_K, basis[name], 1), part) for name, part in gradient.items()
    }


def _norm(direction: dict[str, Tensor]) -> float:
    return math.sqrt(inner(direction, direction))


def _ground_truth(logits_CV: Tensor, place_C: Tensor, labels_BL: Tensor) -> Tensor:
    next_C1 = labels_BL.flatten()[place_C + 1][:, None]
    return logits_CV.float().gather(-1, next_C1).sum()


def _average(logits_CV: Tensor, place_C: Tensor, labels_BL: Tensor) -> Tensor:
    return logits_CV.float().mean(-1).sum()


LOGITS = {"ground_truth": _ground_truth, "average": _average}

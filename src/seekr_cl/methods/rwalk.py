"""RWalk: weights are held by their Fisher information and by what they did for the loss on the way."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from seekr_cl.distributed.dtensor import local
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult
from seekr_cl.methods.common.gradients import across, check_names, placed, step_gradients, trained
from seekr_cl.methods.training_defaults import PLAIN_DESCENT
from seekr_cl.settings import Ge, Gt, Hint, Le, Settings

KINDS = ("fisher", "score", "anchor")


@dataclass(frozen=True, kw_only=True)
class RWalkSettings(Settings):
    """Settings of RWalk.

    Attributes:
        strength: lambda of the penalty; 1 in the official code's scripts.
        alpha: how much of the running Fisher information each new measurement makes up; the paper's 0.9.
        interval: steps from one measurement to the next (the paper's delta t); 10 in the official code.
        epsilon: added to the distance that the loss's fall is divided by; 1e-3 in the official code.
    """

    strength: Annotated[float, Ge(0), Hint("0 is plain fine-tuning")] = 1.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    interval: Annotated[int, Ge(1)] = 10
    epsilon: Annotated[float, Gt(0)] = 1e-3


class RWalk(Method):
    """L = L_task + lambda sum_i (F_i + s_i) (theta_i - theta*_i)^2, theta* the weights after the last task.

    F is one Fisher information that runs on over steps and tasks, F <- alpha F_now + (1 - alpha) F (EWC++), F_now the
    mean over an interval of the squared gradients of the batches. s_i adds up, over the intervals, how far the loss
    fell along weight i, -sum g_i dtheta_i where that is positive, over the distance in KL divergence that was gone for
    it, 1/2 F_i dtheta_i^2 + epsilon. After each task the scores are averaged with the older ones, (s + s_task) / 2. In
    the penalty both are brought to [0, 1], by their least and largest values over all weights.

    That is the paper. Its code differs: it divides by F_i dtheta_i^2 without the 1/2, adds the mean of old and new
    score to the old, and takes intervals of 10 (MNIST) and 50 steps (CIFAR).

    g is the gradient of the task's loss alone: the penalty's, known in closed form, is taken off. Costs up to
    eleven float32 numbers a trained weight on the device, and three in the replay memory.
    """

    name = "rwalk"
    paper = Paper(
        "Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence",
        "Chaudhry et al., 2018",
        "https://arxiv.org/abs/1801.10112",
    )
    Settings = RWalkSettings
    training_defaults = PLAIN_DESCENT
    weight_access = "sharded"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self._old: dict[str, dict[str, Tensor]] = {}
        self._hold: dict[str, Tensor] = {}
        if context.previous_state is not None:
            for kind in KINDS:
                mark = f"{kind}/"
                found = {n.removeprefix(mark): t for n, t in context.previous_state[0].items() if n.startswith(mark)}
                check_names(context.model, found, self.name)
                self._old[kind] = found
            fisher, score = unit_range(self._old["fisher"]), unit_range(self._old["score"])
            self._hold = {name: fisher[name] + score[name] for name in fisher}
        self._fisher = dict(self._old.get("fisher", {}))
        self._path: dict[str, Tensor] = {}
        self._steps = 0
        self._interval: dict[str, dict[str, Tensor]] = {}
        self._before: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss and, from the second task on, the penalty."""
        weights = self._place()
        if not self._hold:
            return super().new_task_loss(model, batch)
        pulls = [
            local(self._hold[name] * (weight.float() - self._old["anchor"][name]).square()).sum()
            for name, weight in weights.items()
        ]
        penalty = across(torch.stack(pulls).sum(), weights)
        terms = super().new_task_loss(model, batch)
        return terms | {"penalty": LossTerm(penalty, self.settings.strength, of_weights=True)}

    def _place(self) -> dict[str, nn.Parameter]:
        """The trained weights; all that belongs to them is brought to where and how they lie."""
        weights = trained(self.context.model)
        for held in (self._old, self._interval):
            held |= {kind: placed(tensors, weights) for kind, tensors in held.items()}
        self._hold, self._fisher, self._path = (
            placed(tensors, weights) for tensors in (self._hold, self._fisher, self._path)
        )
        return weights

    def before_step(self, model: nn.Module) -> None:
        """Notes the weights and the gradient of the task's loss."""
        weights = {name: weight.detach().float().clone() for name, weight in trained(model).items()}
        # Copies: clipping would scale them in place.
        gradients = {name: gradient.clone() for name, gradient in step_gradients(model).items()}
        for name, hold in self._hold.items():
            gradients[name] -= 2 * self.settings.strength * hold * (weights[name] - self._old["anchor"][name])
        self._before = weights, gradients

    def after_step(self, model: nn.Module) -> None:
        """Adds the step to its interval, and the interval to the path when it is over."""
        if self._before is None:
            return
        (before, gradients), self._before = self._before, None
        # Under float16 a scaler leaves out steps whose gradients are no numbers.
        wrong = torch.stack([(~local(gradient).isfinite()).sum() for gradient in gradients.values()]).sum()
        if bool(across(wrong, gradients)):
            return
        if self._steps == 0:
            zeros = {name: torch.zeros_like(weight) for name, weight in before.items()}
            self._interval = {"start": before, "fall": zeros, "square": dict(zeros)}
        fall, square = self._interval["fall"], self._interval["square"]
        for name, weight in trained(model).items():
            fall[name] = fall[name] - gradients[name] * (weight.detach().float() - before[name])
            square[name] = square[name] + gradients[name].square()
        self._steps += 1
        if self._steps == self.settings.interval:
            self._end_interval()

    def _end_interval(self) -> None:
        alpha, part = self.settings.alpha, self._interval
        for name, weight in trained(self.context.model).items():
            now = part["square"][name] / self._steps
            fisher = torch.lerp(self._fisher[name], now, alpha) if name in self._fisher else now
            moved = weight.detach().float() - part["start"][name]
            gain = (part["fall"][name] / (0.5 * fisher * moved.square() + self.settings.epsilon)).clamp(min=0)
            self._fisher[name] = fisher
            self._path[name] = self._path[name] + gain if name in self._path else gain
        self._steps, self._interval = 0, {}

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Ends the last interval and averages the scores."""
        if self._steps:
            self._end_interval()
        tensors: dict[str, Tensor] = {}
        for weight, parameter in trained(self.context.model).items():
            if weight not in self._path:
                break
            old = self._old.get("score", {}).get(weight)
            score = self._path[weight] if old is None else (old + self._path[weight]) / 2
            anchor = parameter.detach().float().clone()
            tensors |= {f"fisher/{weight}": self._fisher[weight], f"score/{weight}": score, f"anchor/{weight}": anchor}
        state = (tensors, {}) if tensors else self.context.previous_state
        return TaskResult(MemoryTask(name, samples), next_state=state)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The running sums between two steps."""
        held = {"fisher": self._fisher, "path": self._path, **self._interval}
        tensors = {f"{kind}/{name}": tensor for kind, found in held.items() for name, tensor in found.items()}
        return tensors, {"steps": self._steps}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes the running sums."""
        found: dict[str, dict[str, Tensor]] = {}
        for full, tensor in tensors.items():
            kind, _, name = full.partition("/")
            found.setdefault(kind, {})[name] = tensor
        self._fisher, self._path = found.pop("fisher", {}), found.pop("path", {})
        self._interval, self._steps = found, content["steps"]


def unit_range(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of all tensors together, moved and scaled to [0, 1]; all 0 where they are the same."""
    least = torch.stack([tensor.min() for tensor in tensors.values()]).min()
    most = torch.stack([tensor.max() for tensor in tensors.values()]).max()
    width = (most - least).clamp(min=torch.finfo(most.dtype).tiny)
    return {name: (tensor - least) / width for name, tensor in tensors.items()}

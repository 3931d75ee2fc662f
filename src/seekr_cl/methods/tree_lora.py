"""TreeLoRA: one low-rank adapter, drawn layer by layer towards what it was on the most similar earlier tasks.

Shapes: K earlier tasks, N adapted layers, R rank, I a layer's inputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult
from seekr_cl.methods.common.lora import AdapterSettings, lora_layers, one_lora, own_adapter
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.query_adapters import ADAPTER
from seekr_cl.settings import Ge, Hint


@dataclass(frozen=True, kw_only=True)
class TreeLoraSettings(AdapterSettings):
    """Settings of TreeLoRA; the defaults are those of the official scripts for TRACE.

    Attributes:
        strength: weight of the alignment, as a share of the task's loss (``reg``).
    """

    strength: Annotated[float, Ge(0), Hint("0 switches the term off")] = 0.5


@dataclass(slots=True)
class Node:
    """Tasks that are alike in all layers above this one.

    Attributes:
        tasks: their numbers.
        children: the same tasks in two parts, alike in this layer too; none in a leaf.
    """

    tasks: list[int]
    children: list["Node"] = field(default_factory=list)


def build_tree(vectors_NK: Sequence[Sequence[Tensor]], tasks: list[int] | None = None, depth: int = 0) -> Node:
    """The tree over tasks: at depth n they are split at the median of their inner products with their mean in layer n.

    Args:
        vectors_NK: by layer and task, all of a layer of one shape.
        tasks: those below the node to be made; default all.
        depth: the layer it looks at.
    """
    tasks = list(range(len(vectors_NK[0]))) if tasks is None else tasks
    if len(tasks) < 2 or depth == len(vectors_NK):
        return Node(tasks)
    stacked_KX = torch.stack([vectors_NK[depth][task].flatten() for task in tasks])
    alike_K = stacked_KX @ stacked_KX.mean(0)
    median = float(alike_K.median())
    parts = [[t for t, a in zip(tasks, alike_K.tolist()) if (a >= median) == above] for above in (True, False)]
    if not all(parts):
        parts = [tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]]
    return Node(tasks, [build_tree(vectors_NK, part, depth + 1) for part in parts])


def search(root: Node, bound_KN: Tensor) -> list[int]:
    """For each layer the task with the lowest bound among those below the node that the layer before led to."""
    node, chosen = root, []
    for bound_K in bound_KN.T:
        best = min(node.tasks, key=lambda task: (float(bound_K[task]), task))
        chosen.append(best)
        node = next((child for child in node.children if best in child.tasks), node)
    return chosen


class TreeLora(Method):
    """L = L_task - strength c sum_n <A_n, A_n^(k_n)>, with c = L_task / |that sum| held fixed.

    A_n^(k) is the mean over task k's steps of the adapter's down-projection in layer n, which stands for the task's
    accumulated gradient. k_n is the earlier task whose distance in layer n has the lowest confidence bound, looked for
    down a tree of tasks. As in the official code, from which this is taken, one adapter goes through all tasks.
    Deviations from that code: the choice is the lowest bound along the tree and not a draw weighted by the tree's first
    split; distances are relative to the size of A^(k); ``strength`` does not grow within an epoch; the sum's sign is
    kept, so that the term always aligns; A^(k) is a mean over all steps of a task, where the code begins it anew each
    epoch and so keeps the last one's; the bound's logarithm is without the code's ``total_rounds``.
    """

    name = "tree_lora"
    paper = Paper(
        "TreeLoRA: Efficient Continual Learning via Layer-Wise LoRAs Guided by a Hierarchical Gradient-Similarity Tree",
        "Qian et al., 2025",
        "https://arxiv.org/abs/2506.10355",
    )
    Settings = TreeLoraSettings
    training_defaults = TrainingDefaults(
        learning_rate=1e-4, lr_scheduler_type="cosine", reason="official code, lora_based_methods/Tree_LoRA.sh"
    )
    adapters = True
    weight_access = "whole"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        model = own_adapter(settings, context.model, self.goes_on_from(context.model), context.seed)
        context.model = model
        self._down = {name: cast(nn.Parameter, layer.lora_A[ADAPTER].weight) for name, layer in lora_layers(model)}
        tensors, content = context.previous_state or ({}, {"tasks": 0})
        self._earlier = _earlier(tensors, content["tasks"], self._down)
        layers = len(self._down)
        self._distance_KN = torch.zeros(len(self._earlier), layers, dtype=torch.float64)
        self._count_KN = torch.zeros_like(self._distance_KN)
        self._sum = {name: torch.zeros_like(down, dtype=torch.float32) for name, down in self._down.items()}
        self._steps = 0
        self._root = build_tree(_changes(self._earlier)) if self._earlier else Node([])
        self._chosen = self._choose()

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a model comes with one low-rank adapter."""
        return one_lora(model)

    def _choose(self) -> list[int]:
        if not self._earlier:
            return []
        mean_KN = self._distance_KN / self._count_KN.clamp(min=1)
        radius_KN = torch.sqrt(math.log(2 * (self._steps + 1) * (self._steps + 2)) / (2 * self._count_KN))
        # A task that was looked at seldom seems nearer than it was; one never looked at, as near as can be.
        return search(self._root, torch.where(self._count_KN == 0, -torch.inf, mean_KN - radius_KN))

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss and the alignment with the chosen tasks."""
        terms = super().new_task_loss(model, batch)
        if self._earlier and self.settings.strength:
            products = [
                (down.float() * self._earlier[task][name]).sum()
                for task, (name, down) in zip(self._chosen, self._down.items(), strict=True)
            ]
            total = torch.stack(products).sum()
            size = total.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)
            task = terms["task"]
            value = -task.value.detach() * total / size
            terms["alignment"] = LossTerm(value, self.settings.strength, task.count)
        return terms

    def after_step(self, model: nn.Module) -> None:
        """Notes where the adapter is, how far from the chosen tasks, and chooses again."""
        self._steps += 1
        for place, (name, down) in enumerate(self._down.items()):
            self._sum[name] += down.detach().float()
            if self._chosen:
                task = self._chosen[place]
                then = self._earlier[task][name]
                apart = (self._sum[name] / self._steps - then).abs().sum() / then.abs().sum()
                self._distance_KN[task, place] += float(apart)
                self._count_KN[task, place] += 1
        self._chosen = self._choose()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Sums, distances and the choice."""
        tensors = {f"sum/{name}": tensor for name, tensor in self._sum.items()}
        return tensors | {"distance": self._distance_KN, "count": self._count_KN}, {"steps": self._steps}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave; the choice follows from it."""
        self._sum = {name: tensors[f"sum/{name}"].to(down.device) for name, down in self._down.items()}
        self._distance_KN, self._count_KN = tensors["distance"], tensors["count"]
        self._steps = content["steps"]
        self._chosen = self._choose()

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Leaves A^(k) of every task, by layer."""
        steps = max(1, self._steps)
        everything = [*self._earlier, {layer: tensor / steps for layer, tensor in self._sum.items()}]
        tensors = {f"{task}/{layer}": t for task, layers in enumerate(everything) for layer, t in layers.items()}
        return TaskResult(MemoryTask(name, samples), next_state=(tensors, {"tasks": len(everything)}))

    def finished_model(self) -> PreTrainedModel:
        """The model with its adapter."""
        cast(Any, self.context.model).disable_input_require_grads()
        return self.context.model


def _earlier(tensors: Mapping[str, Tensor], count: int, down: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    found = [{name: tensors.get(f"{task}/{name}") for name in down} for task in range(count)]
    if any(t is None or t.shape != down[name].shape for layers in found for name, t in layers.items()):
        raise MemoryFormatError(
            "tree_lora: the memory carries on adapters of other layers or another rank than those trained now; keep "
            "method.targets and method.rank as they were, or begin a new memory"
        )
    return [{name: cast(Tensor, t).to(down[name].device) for name, t in layers.items()} for layers in found]


def _changes(earlier: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    """By layer and task, what the task changed; the first one's adapter itself (official code)."""
    return [
        [layers[name] - earlier[task - 1][name] if task else layers[name] for task, layers in enumerate(earlier)]
        for name in earlier[0]
    ]

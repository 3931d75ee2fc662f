"""EWC: weights that mattered to old tasks are held near where these left them; no sample is kept."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from seekr_cl.distributed.dtensor import local
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.answers import label_sum
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, State, TaskResult, task_generator
from seekr_cl.methods.common.gradients import (
    across,
    check_names,
    drawn,
    example_batch,
    example_gradients,
    placed,
    sampled_loss,
    trained,
)
from seekr_cl.methods.losses import count_labels
from seekr_cl.settings import Ge, Hint, Le, Settings, setting


@dataclass(frozen=True, kw_only=True)
class EWCSettings(Settings):
    """Settings of EWC.

    Attributes:
        strength: lambda of eq. 3; the paper's 400 (of its Atari experiments).
        form: ``full`` adds a penalty for every old task (EWC); ``online`` keeps one running Fisher information around
            the newest weights (Progress & Compress, Schwarz et al., 2018).
        decay: gamma of the online form: what is left of the older tasks' information at each new task.
        fisher_samples: training examples that the information is measured on.
        fisher_labels: ``model`` draws the labels from the model's own distribution, as the Fisher information is
            defined; ``data`` takes the data's (the empirical one, which most codes compute).
    """

    strength: Annotated[float, Ge(0), Hint("0 is plain fine-tuning")] = 400.0
    form: Literal["full", "online"] = "full"
    decay: Annotated[float | None, Ge(0), Le(1)] = setting(None, needs={"form": "online"})
    fisher_samples: Annotated[int, Ge(1)] = 256
    fisher_labels: Literal["model", "data"] = "model"


class EWC(Method):
    """L = L_task + lambda / 2 sum_i F_i (theta_i - theta*_i)^2 (eq. 3).

    The penalties of several tasks are one quadratic with the summed information F around the mean m of the old
    weights weighted by it, plus a constant: sum_t F_t (theta - theta_t)^2 = F (theta - m)^2 + rest. So the full form
    costs as much as the online one, two numbers a weight, however many tasks there were.

    F is the Fisher information of p(answer | prompt), whose logarithm is a sum over tokens, taken per answer token as
    the task's loss is: F = sum_i g_i^2 / sum_i T_i, with g_i the gradient of example i's summed loss and T_i its answer
    tokens. So F is the curvature of that loss, and one lambda holds tasks of short and of long answers alike. (TRACE's
    code squares gradients of batches' means while training, which shrink with the answers' length.)
    """

    name = "ewc"
    paper = Paper(
        "Overcoming catastrophic forgetting in neural networks",
        "Kirkpatrick et al., 2017",
        "https://arxiv.org/abs/1612.00796",
    )
    Settings = EWCSettings
    weight_access = "sharded"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}
        self._rest = 0.0
        if context.previous_state is not None:
            tensors, content = context.previous_state
            for kind, place in (("fisher/", self._fisher), ("anchor/", self._anchor)):
                place |= {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}
                check_names(context.model, place, self.name)
            self._rest = float(content["rest"])

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss and, from the second task on, the penalty."""
        if not self._fisher:
            return super().new_task_loss(model, batch)
        weights = trained(self.context.model)
        self._fisher, self._anchor = placed(self._fisher, weights), placed(self._anchor, weights)
        pulls = [
            local(self._fisher[name] * (weight.float() - self._anchor[name]).square()).sum()
            for name, weight in weights.items()
        ]
        penalty = across(torch.stack(pulls).sum(), weights) + self._rest
        terms = super().new_task_loss(model, batch)
        return terms | {"penalty": LossTerm(penalty, self.settings.strength / 2, of_weights=True)}

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Measures the Fisher information at the weights that the task ended with, which are the next anchor."""
        settings, weights = self.settings, trained(self.context.model)
        generator = task_generator(self.context.seed)
        make_loss = partial(sampled_loss, generator) if settings.fisher_labels == "model" else lambda: label_sum
        examples = drawn(self.context, settings.fisher_samples)
        tokens = [int(count_labels(example_batch(self.context, [one])["labels"])) for one in examples]
        # An answer of one token without a prompt has nothing before it to be predicted from.
        examples, tokens = [one for one, count in zip(examples, tokens) if count], [one for one in tokens if one]
        fresh = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        for count, gradients in zip(tokens, example_gradients(self.context, examples, make_loss)):
            for weight, gradient in gradients.items():
                # The loss is a mean over the answer, its sum's gradient so many times as large.
                fresh[weight] += gradient.float().square() * (count**2 / sum(tokens))
        self._fisher, self._anchor = placed(self._fisher, weights), placed(self._anchor, weights)
        now = {name: weight.detach().float() for name, weight in weights.items()}
        return TaskResult(MemoryTask(name, samples), next_state=self._merged(fresh, now))

    def _merged(self, fresh: dict[str, Tensor], now: dict[str, Tensor]) -> State:
        """The old tasks' quadratic with the new one's added."""
        tensors: dict[str, Tensor] = {}
        rest = self._rest
        for name, fisher in fresh.items():
            old, anchor = self._fisher.get(name), self._anchor.get(name)
            if old is None or anchor is None:
                total, middle = fisher, now[name]
            elif self.settings.form == "online":
                decay = 1.0 if self.settings.decay is None else self.settings.decay
                total, middle = decay * old + fisher, now[name]
            else:
                total = old + fisher
                # Where nothing is known of a weight it is not held, wherever the middle lies.
                known = fisher / total.clamp(min=torch.finfo(total.dtype).tiny)
                share = torch.where(total > 0, known, torch.ones_like(known))
                middle = torch.lerp(anchor, now[name], share)
                rest += float(across(local(old * share * (now[name] - anchor).square()).sum(), fresh))
            tensors |= {f"fisher/{name}": total, f"anchor/{name}": middle.clone()}
        return tensors, {"rest": rest}

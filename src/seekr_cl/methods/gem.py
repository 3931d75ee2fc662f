"""GEM: a step must not raise the loss of any old task's samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from seekr_cl.distributed.dtensor import local
from seekr_cl.methods.base import Paper
from seekr_cl.methods.common.gradients import across, put_gradients, step_gradients
from seekr_cl.methods.common.reference_gradients import ReferenceMethod
from seekr_cl.methods.training_defaults import PLAIN_DESCENT
from seekr_cl.settings import Ge, Hint, Settings


@dataclass(frozen=True, kw_only=True)
class GEMSettings(Settings):
    """Settings of GEM.

    Attributes:
        margin: gamma, which favors steps that improve old tasks; 0.5 in the official code and its scripts.
        margin_form: ``added`` to the solution v, as the paper's text has it; ``bound``: v >= gamma is what the
            quadratic program is solved under, as the official code does.
        reference_samples: samples of each old task whose mean gradient is its constraint, drawn anew each step; all of
            them by default, as in the paper.
    """

    margin: Annotated[float, Ge(0), Hint("0 is the projection alone")] = 0.5
    margin_form: Literal["added", "bound"] = "added"
    reference_samples: Annotated[int | None, Ge(1), Hint("null takes all of them")] = None


class GEM(ReferenceMethod):
    """L = L_task, with the gradient nearest to its own that has g . g_k >= 0 for every old task k (eq. 6 to 8).

    Solved in its dual (eq. 11), one number v_k a task: min_v 1/2 |G^T v + g|^2, v >= 0, which is a non-negative least
    squares problem in the span of the gradients. As many gradients as there are old tasks are held at once, in
    float32, and each step passes over every kept sample. Where no task is violated, the gradient stays as it is.

    As in A-GEM, an optimizer with moments steps in another direction than the gradient's.
    """

    name = "gem"
    paper = Paper(
        "Gradient Episodic Memory for Continual Learning",
        "Lopez-Paz and Ranzato, 2017",
        "https://arxiv.org/abs/1706.08840",
    )
    Settings = GEMSettings
    training_defaults = PLAIN_DESCENT

    def before_step(self, model: nn.Module) -> None:
        """Replaces the step's gradient where it points against an old task's."""
        if self.old:
            references = []
            for number, task in enumerate(self.old):
                count = self.settings.reference_samples or len(task.samples)
                places = self.draw(count, len(task.samples), number)
                references.append(self.reference([task.samples[place] for place in places]))
            gradient = step_gradients(model)
            gram_KK = gram([*references, gradient])
            # A gradient that is not a number is the Trainer's to refuse.
            if bool(gram_KK.isfinite().all()) and bool((gram_KK[-1, :-1] < 0).any()):
                factors = dual_solution(gram_KK, self.settings.margin, self.settings.margin_form)
                for factor, reference in zip(factors.tolist(), references):
                    for name in gradient:
                        gradient[name] = gradient[name] + factor * reference[name]
                put_gradients(model, gradient)
        self.step += 1


def gram(gradients: Sequence[dict[str, Tensor]]) -> Tensor:
    """Inner products [K, K] of K gradients, in float64 on the CPU."""
    total_KK = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for name in gradients[0]:
        part_KP = torch.stack([local(one[name]).flatten() for one in gradients])
        total_KK += (part_KP @ part_KP.T).double().cpu()
    return across(total_KK, gradients[0])


def dual_solution(gram_KK: Tensor, margin: float, form: str) -> Tensor:
    """The old tasks' factors v [K - 1] that are added to a gradient (eq. 11), its margin included.

    Args:
        gram_KK: inner products of the old tasks' gradients and, last, of the step's.
        margin: gamma.
        form: ``added`` or ``bound``, as in the settings.
    """
    # Only who uses GEM pays for the import.
    from scipy.optimize import nnls

    # Vectors with the same inner products: what the problem depends on, in as many dimensions as there are gradients.
    value_K, vector_KK = torch.linalg.eigh(gram_KK)
    place_KK = value_K.clamp(min=0).sqrt()[:, None] * vector_KK.T
    old_KT, new_K = place_KK[:, :-1], place_KK[:, -1]
    least = margin if form == "bound" else 0.0
    found, _ = nnls(old_KT.numpy(), -(new_K + least * old_KT.sum(1)).numpy())
    return torch.from_numpy(found) + margin

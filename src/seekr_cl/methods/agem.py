"""A-GEM: a step that would raise the mean loss of old samples loses the part that does."""

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from seekr_cl.memory import TaskSamples
from seekr_cl.methods.base import Paper
from seekr_cl.methods.common.gradients import inner, put_gradients, step_gradients
from seekr_cl.methods.common.reference_gradients import ReferenceMethod
from seekr_cl.methods.training_defaults import PLAIN_DESCENT
from seekr_cl.settings import Ge, Settings


@dataclass(frozen=True, kw_only=True)
class AGEMSettings(Settings):
    """Settings of A-GEM.

    Attributes:
        reference_samples: old samples whose mean gradient is the reference of a step, drawn from all old tasks; 256
            in the official code. Each step passes over them forward and backward.
    """

    reference_samples: Annotated[int, Ge(1)] = 256


class AGEM(ReferenceMethod):
    """L = L_task, its gradient g held to g . g_ref >= 0 (eq. 10), by the projection of eq. 11.

    It is the gradient that is projected, before it is clipped; an optimizer with moments, such as Adam, steps in
    another direction than its gradient's. The paper uses plain gradient descent.
    """

    name = "agem"
    paper = Paper("Efficient Lifelong Learning with A-GEM", "Chaudhry et al., 2019", "https://arxiv.org/abs/1812.00420")
    Settings = AGEMSettings
    training_defaults = PLAIN_DESCENT

    def before_step(self, model: nn.Module) -> None:
        """Projects the step's gradient where it points against the reference."""
        if self.old:
            samples = TaskSamples(self.old)
            places = self.draw(self.settings.reference_samples, len(samples))
            reference = self.reference([samples[place][1] for place in places])
            gradient = step_gradients(model)
            along = inner(gradient, reference)
            if along < 0:
                factor = along / inner(reference, reference)
                put_gradients(model, {name: gradient[name] - factor * reference[name] for name in gradient})
        self.step += 1

"""Averaging the trained weights of a task with those before it, or over its steps (``average``)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from seekr_cl.config.average import AverageSettings, EMASettings, SFASettings, WiSEFTSettings
from seekr_cl.methods.common.gradients import trained


class Averaging(TrainerCallback):
    """Holds the other weights and averages; made before a checkpoint's weights are loaded.

    What a checkpoint needs are the weights that are trained, with the averages so far in them, and those of ``ema``;
    the weights before the task are there again when it goes on.

    Args:
        settings: how.
        model: as it is before the task.
    """

    def __init__(self, settings: AverageSettings, model: nn.Module) -> None:
        self._settings, self._model = settings, model
        # Steps of 1 - decay are lost in half precision.
        dtype = torch.float32 if isinstance(settings, EMASettings) else None
        self._other = {name: w.detach().to(dtype or w.dtype, copy=True) for name, w in trained(model).items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``ema`` follows the weights; ``sfa`` draws them back when a period ends, but for the last."""
        if isinstance(self._settings, EMASettings):
            self._follow(1 - self._settings.decay)
        elif isinstance(self._settings, SFASettings):
            over = self._periods(state.global_step, state) > self._periods(state.global_step - 1, state)
            if over and state.global_step < state.max_steps:
                self._draw_back(self._settings.beta)

    def _periods(self, step: int, state: Any) -> int:
        """How many periods are over after a step; what ends with it counts, whatever the rounding."""
        assert isinstance(self._settings, SFASettings)
        return int(step / (self._settings.period * state.max_steps) + 1e-9)

    def finish(self) -> None:
        """The weights as the task ends with them, after its last step."""
        if isinstance(self._settings, EMASettings):
            self._draw_back(1.0)
        elif isinstance(self._settings, SFASettings):
            self._draw_back(self._settings.beta)
        else:
            assert isinstance(self._settings, WiSEFTSettings)
            self._draw_back(1 - self._settings.alpha)

    @torch.no_grad()
    def _follow(self, share: float) -> None:
        for name, weight in trained(self._model).items():
            self._other[name].lerp_(weight.float(), share)

    @torch.no_grad()
    def _draw_back(self, share: float) -> None:
        for name, weight in trained(self._model).items():
            weight.copy_(torch.lerp(weight.float(), self._other[name].float(), share))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return self._other if isinstance(self._settings, EMASettings) else {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes what ``state`` gave."""
        for name, tensor in tensors.items():
            self._other[name].copy_(tensor)

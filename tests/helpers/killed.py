"""A training that is cut off within its process, at a step."""

from typing import Any

from transformers import TrainerCallback


class Killed(BaseException):
    """Nothing in the library catches it."""


class KillAt(TrainerCallback):
    """Raises it before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed

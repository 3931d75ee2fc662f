"""What the official code lets over from one task into the next: the optimizer's state and leftover gradients.

Kept beside the model as safetensors, so that two calls on two days do the same as one run.
"""

from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from seekr_cl import ranks
from seekr_cl.errors import ModelError
from seekr_cl.system.files import write_tensors

FILE = "seekr_carry.safetensors"


class OptimizerCarryover:
    """Tensors by name: ``gradient/<parameter>`` and ``state/<parameter>/<key>``."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """From a model's folder, if something was carried over into it."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls(load_file(path))
        except SafetensorError as error:
            raise ModelError(f"{path}: damaged ({error}); restore it from a copy or remove it") from error

    @classmethod
    def take(cls, model: nn.Module, optimizer: Any, gradients: bool, steps: int = 1) -> Self:
        """Copies the optimizer's state, and the gradients if asked for, divided by the accumulation ``steps``."""
        tensors = {}
        for name, parameter in model.named_parameters():
            for key, value in _state(optimizer).get(parameter, {}).items():
                tensors[f"state/{name}/{key}"] = torch.as_tensor(value).detach().clone()
            gradient = parameter.grad
            if gradient is None and ranks.count() > 1:
                # A process whose share of the samples was empty still takes part in the sum.
                gradient = torch.zeros_like(parameter)
            if gradients and gradient is not None:
                tensors[f"gradient/{name}"] = ranks.total(gradient.detach()) / steps
        return cls(tensors)

    def save(self, folder: Path) -> None:
        """Writes the file into a model's folder."""
        write_tensors(folder / FILE, self.tensors, private=False)

    def put_state(self, model: nn.Module, optimizer: Any) -> None:
        """Gives the state to a fresh optimizer of the same kind."""
        # A method may train other adapters now than those the state is of.
        parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for full, tensor in self.tensors.items():
            kind, _, rest = full.partition("/")
            name, _, key = rest.rpartition("/")
            if kind == "state" and name in parameters:
                place = "cpu" if key == "step" else parameters[name].device
                _state(optimizer)[parameters[name]][key] = tensor.clone().to(place)

    def put_gradients(self, model: nn.Module) -> None:
        """Puts the leftover gradients where the first backward pass adds to them; later calls do nothing."""
        for name, parameter in model.named_parameters():
            gradient = self.tensors.pop(f"gradient/{name}", None)
            if gradient is not None:
                parameter.grad = gradient.to(parameter.device)


def _state(optimizer: Any) -> Any:
    """The state of the torch optimizer, which accelerate may have wrapped."""
    return getattr(optimizer, "optimizer", optimizer).state

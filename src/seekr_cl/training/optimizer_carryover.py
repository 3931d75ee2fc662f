"""What the official code carries over from one task to the next: the optimizer's state and leftover gradients.

Kept beside the model as safetensors, so that two calls on two days do the same as one run.
"""

from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from seekr_cl.distributed import collectives
from seekr_cl.errors import ModelError
from seekr_cl.system.files import write_tensors

FILE = "seekr_carry.safetensors"
_REMEDY = "restore it from a copy or remove it"


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
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged ({error}); {_REMEDY}") from error

    @classmethod
    def take(cls, model: nn.Module, optimizer: Any, gradients: bool, steps: int = 1) -> Self:
        """Copies the optimizer's state, and the gradients if asked for, divided by the accumulation ``steps``."""
        tensors = {}
        for name, parameter in model.named_parameters():
            for key, value in _state(optimizer).get(parameter, {}).items():
                tensors[f"state/{name}/{key}"] = torch.as_tensor(value).detach().clone()
            gradient = parameter.grad
            if gradient is None and collectives.world_size() > 1:
                # A process whose share of the samples was empty still takes part in the sum.
                gradient = torch.zeros_like(parameter)
            if gradients and gradient is not None:
                tensors[f"gradient/{name}"] = collectives.all_reduce_sum(gradient.detach()) / steps
        return cls(tensors)

    def check(self, path: Path, model: nn.Module, keys: frozenset[str] | None) -> None:
        """Makes sure that it is what an optimizer of these settings left of a model with such weights.

        Args:
            path: the model's folder, for messages.
            model: the one that goes on.
            keys: names of what the optimizer keeps of each weight, if they are known.

        Raises:
            ModelError: naming the tensor that does not fit.
        """
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        found: dict[str, set[str]] = {}
        for full, tensor in self.tensors.items():
            kind, _, rest = full.partition("/")
            name, _, key = (rest, "", "") if kind == "gradient" else rest.rpartition("/")
            shape = shapes.get(name)
            if kind not in ("gradient", "state") or (
                shape is not None and not _may_be(tuple(tensor.shape), shape, key)
            ):
                raise ModelError(f"{path / FILE}: {full} {list(tensor.shape)} does not belong to this model; {_REMEDY}")
            if kind == "state" and shape is not None:
                found.setdefault(name, set()).add(key)
        for name, own in found.items():
            if keys is not None and own != keys:
                raise ModelError(
                    f"{path / FILE}: keeps {', '.join(sorted(own))} of {name}, the optimizer "
                    f"{', '.join(sorted(keys)) or 'nothing'}; use the former optim, or {_REMEDY}"
                )

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


def check_carry(folder: Path, model: nn.Module, keys: frozenset[str] | None) -> None:
    """Makes sure of what was carried over into a model's folder, if something was; see ``OptimizerCarryover.check``."""
    if (former := OptimizerCarryover.load(folder)) is not None:
        former.check(folder, model, keys)


def _may_be(shape: tuple[int, ...], weight: tuple[int, ...], key: str) -> bool:
    """Whether a state of that shape can be of a weight: as large, one number, or Adafactor's rows and columns."""
    if not key or shape in (weight, (), (1,)):
        return shape == weight or bool(key)
    return shape in (weight[:-1], weight[:-2] + weight[-1:])


def _state(optimizer: Any) -> Any:
    """The state of the torch optimizer, which accelerate may have wrapped."""
    return getattr(optimizer, "optimizer", optimizer).state

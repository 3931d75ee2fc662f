"""Tensors and models of which a process holds only its part: the DTensors of FSDP2. On all others nothing happens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, place: Tensor) -> Tensor:
    """A whole tensor, cut and placed as ``place`` is; every process has to ask."""
    if isinstance(place, DTensor):
        return distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
    return tensor.to(place.device)


def reshard(model: nn.Module) -> None:
    """After passes without a backward pass, in which a sharded model leaves some modules whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def borrowed(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """For a block of code without gradient: other values in the place of some of a model's weights.

    They are copied in, because a sharded model's forward pass gathers what lies in its parameters' own storage.

    Args:
        model: sharded after a pass by ``reshard``; not between a forward pass and its backward pass.
        weights: by name, placed as ``like`` places them.
    """
    places = {name: local(place.detach()) for name, place in model.named_parameters() if name in weights}
    own = {name: place.clone() for name, place in places.items()}
    try:
        _copy(weights, places)
        yield
    finally:
        # What a pass left gathered is of the borrowed weights.
        reshard(model)
        _copy(own, places)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    for name, place in places.items():
        place.copy_(local(values[name]))

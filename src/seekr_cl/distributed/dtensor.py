"""Tensors and models of which a process holds only its part; on all others nothing happens.

Two engines cut weights up: FSDP2, whose parameters are DTensors, and DeepSpeed's ZeRO-3, whose parameters are empty
but while a pass needs them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return isinstance(tensor, DTensor) or _is_cut(tensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to ask."""
    if _is_cut(tensor):
        with _zero().GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, place: Tensor, lead: int = 0) -> Tensor:
    """A whole tensor, cut as ``place`` is if that is a DTensor, on its device; every process has to ask.

    Args:
        tensor: whole.
        place: what it is like.
        lead: how many dimensions the tensor has before those of ``place``.
    """
    if isinstance(place, DTensor):
        return distribute_tensor(tensor.to(place.device), place.device_mesh, _after(place, lead))
    return tensor.to(place.device)


def joined(piece: Tensor, place: Tensor, lead: int = 0) -> Tensor:
    """What this process holds, as its part of a tensor that is ``like`` the place; itself where nothing is cut."""
    if not isinstance(place, DTensor):
        return piece
    shape = torch.Size((*piece.shape[:lead], *place.shape))
    return DTensor.from_local(
        piece.to(place.device),
        place.device_mesh,
        _after(place, lead),
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def is_like(tensor: Tensor, place: Tensor) -> bool:
    """Whether ``like`` has been done to it."""
    return isinstance(tensor, DTensor) == isinstance(place, DTensor) and tensor.device == place.device


@torch.no_grad()
def put(tensor: Tensor, place: Tensor) -> None:
    """Copies a tensor to its place in a model, a whole one or one that is ``like`` the place.

    Of a sharded model every process has to, with the same.
    """
    if _is_cut(place):
        with _zero().GatheredParameters([place], modifier_rank=0):
            place.copy_(tensor)
    else:
        place.copy_(tensor if isinstance(tensor, DTensor) else like(tensor, place))


def reshard(model: nn.Module) -> None:
    """After passes without a backward pass, in which a sharded model leaves some modules whole.

    ZeRO-3 also leaves those whole whose input needed no gradient, until the step's end.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    engine = next((weight._z3_optimizer for weight in model.parameters() if hasattr(weight, "_z3_optimizer")), None)
    if engine is not None:
        engine.empty_partition_cache()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` with the parameters themselves: what it makes of those that are cut is empty."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters.get(name, tensor) for name, tensor in model.state_dict().items()}


@contextmanager
def borrowed(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """For a block of code without gradient: other values in the place of some of a model's weights.

    They are copied in, because a sharded model's forward pass gathers what lies in its parameters' own storage.

    Args:
        model: sharded after a pass by ``reshard``; not between a forward pass and its backward pass.
        weights: by name, placed as ``like`` places them.
    """
    places = {name: place for name, place in model.named_parameters() if name in weights}
    own = {name: whole(place) if _is_cut(place) else place.detach().clone() for name, place in places.items()}
    try:
        for name, place in places.items():
            put(weights[name], place)
        yield
    finally:
        # What a pass left gathered is of the borrowed weights.
        reshard(model)
        for name, place in places.items():
            put(own[name], place)


def _after(place: DTensor, lead: int) -> list[Placement]:
    return [Shard(one.dim + lead) if isinstance(one, Shard) else one for one in place.placements]


def _is_cut(tensor: Tensor) -> bool:
    """Whether it is a weight of ZeRO-3."""
    return hasattr(tensor, "ds_id")


def _zero() -> Any:
    from deepspeed import zero

    return zero

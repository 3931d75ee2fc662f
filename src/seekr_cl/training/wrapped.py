"""A model as it trains on several processes: wrapped by DDP, or sharded by FSDP2 so that its parameters are DTensors.

Accelerate does the wrapping; here is what the library needs to know of it beyond that.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, StateDictType
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from seekr_cl import ranks
from seekr_cl.errors import ConfigError
from seekr_cl.training import zero


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """Around a forward pass: DDP does not get ready to average the gradients of the backward pass to come.

    It gets ready for one backward pass; a batch whose terms are measured has several.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def average_next(model: nn.Module, loss: Tensor) -> None:
    """After a forward pass ``alone``: has the gradients of the next backward pass averaged all the same.

    Args:
        model: the wrapped model.
        loss: what ``backward`` will be called on.
    """
    if isinstance(model, DistributedDataParallel):
        model.reducer.prepare_for_backward([loss] if model.find_unused_parameters else [])


def average(model: nn.Module) -> None:
    """Averages over the processes what a backward pass ``alone`` has left in ``.grad``."""
    if isinstance(model, DistributedDataParallel):
        for parameter in model.parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = ranks.total(own) / ranks.count()


def reshard(model: nn.Module) -> None:
    """After passes without a backward pass, in which a sharded model leaves some modules whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def norm_of(gradients: Iterable[Tensor]) -> float:
    """The norm of gradients, of all shards together."""
    squares, sharded = [], False
    for gradient in gradients:
        squares.append(local(gradient).float().square().sum())
        sharded = sharded or is_sharded(gradient)
    if not squares:
        return 0.0
    square = torch.stack(squares).sum()
    return float((ranks.total(square) if sharded else square).sqrt())


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return isinstance(tensor, DTensor) or zero.is_cut(tensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to ask."""
    if zero.is_cut(tensor):
        return zero.gathered(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, place: Tensor) -> Tensor:
    """A whole tensor, cut and placed as ``place`` is."""
    if isinstance(place, DTensor):
        return distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
    return tensor.to(place.device)


def put(tensor: Tensor, place: Tensor) -> None:
    """Copies a whole tensor to its place in a model; of a sharded model every process has to, with the same."""
    if zero.is_cut(place):
        zero.put(place, tensor)
    else:
        with torch.no_grad():
            place.copy_(like(tensor, place))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` with the parameters themselves: what it makes of those that are cut is empty."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters.get(name, tensor) for name, tensor in model.state_dict().items()}


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of each tensor; sharded ones are brought to the CPU of process 0, one after the other.

    Elsewhere an empty tensor keeps its name.
    """
    found = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            full = whole(tensor)
            found[name] = full.cpu() if ranks.is_first() else full.new_empty(0)
        else:
            found[name] = tensor
    return found


def split(tensors: Mapping[str, Tensor], keep_shards: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors as a checkpoint takes them: whole ones, and this process's pieces of the others.

    Args:
        tensors: by name.
        keep_shards: whether rows of a tensor may stay apart; what is cut in another way is put together all the same.
    """
    own = {name: local(tensor) for name, tensor in tensors.items() if keep_shards and _is_cut_by_rows(tensor)}
    return plain({name: tensor for name, tensor in tensors.items() if name not in own}), own


def joined(piece: Tensor, place: Tensor) -> Tensor:
    """A sharded tensor like ``place``, of which this process holds ``piece``."""
    assert isinstance(place, DTensor)
    return DTensor.from_local(
        piece.to(place.device), place.device_mesh, place.placements, shape=place.shape, stride=place.stride()
    )


def keeps_shards(trainer: Any) -> bool:
    """Whether the accelerate config asks for checkpoints of shards, which is FSDP2's default."""
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    return plugin is not None and plugin.state_dict_type is StateDictType.SHARDED_STATE_DICT


def _is_cut_by_rows(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and tensor.device_mesh.ndim == 1 and tensor.placements[0].is_shard(0)


def shard_on_cpu(trainer: Any) -> None:
    """Has a Trainer shard its model by FSDP2 on CPUs too, where accelerate silently makes DDP of it.

    Raises:
        ConfigError: for FSDP1.
    """
    state = trainer.accelerator.state
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not wanted or ranks.count() == 1:
        return
    if state.distributed_type is DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
        state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    if state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError("accelerate: fsdp_version is 1; write 'fsdp_version: 2' into the accelerate config")
    # Sums of gradients that are not reduced yet would stand in the way of measuring a term's own.
    trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True

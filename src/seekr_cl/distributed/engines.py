"""A model as it trains on several processes: wrapped by DDP, or sharded by FSDP2 so that its parameters are DTensors.

Accelerate does the wrapping; here is what the library needs to know of it beyond that.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_flag_from_env,
    patch_environment,
)
from torch import Tensor, nn
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import is_sharded, local, whole
from seekr_cl.errors import ConfigError


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """Around a forward pass: DDP does not get ready to average the gradients of the backward pass to come.

    It gets ready for one backward pass; a batch whose terms are measured has several.
    """
    wrapper = _ddp(model)
    return nullcontext() if wrapper is None else wrapper.no_sync()


def average_next(model: nn.Module, loss: Tensor) -> None:
    """After a forward pass ``alone``: has the gradients of the next backward pass averaged all the same.

    Args:
        model: the wrapped model.
        loss: what ``backward`` will be called on.
    """
    wrapper = _ddp(model)
    if wrapper is not None:
        wrapper.reducer.prepare_for_backward([loss] if wrapper.find_unused_parameters else [])


def average(model: nn.Module) -> None:
    """Averages over the processes what a backward pass ``alone`` has left in ``.grad``."""
    if _ddp(model) is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = collectives.all_reduce_sum(own) / collectives.world_size()


def _ddp(model: nn.Module) -> DistributedDataParallel | None:
    """DDP's module, which a compiled model has inside."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None


def norm_of(gradients: Iterable[Tensor]) -> float:
    """The norm of gradients, of all shards together."""
    squares, sharded = [], False
    for gradient in gradients:
        squares.append(local(gradient).float().square().sum())
        sharded = sharded or is_sharded(gradient)
    if not squares:
        return 0.0
    square = torch.stack(squares).sum()
    return float((collectives.all_reduce_sum(square) if sharded else square).sqrt())


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of each tensor; sharded ones are brought to the CPU of process 0, one after the other.

    Elsewhere an empty tensor keeps its name.
    """
    found = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            full = whole(tensor)
            found[name] = full.cpu() if collectives.is_main() else full.new_empty(0)
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


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """Every weight's type, by name."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def require_dtypes(model: nn.Module, before: Mapping[str, torch.dtype], engine: str) -> None:
    """Makes sure that mixed precision has left the weights the types that they had.

    DeepSpeed makes the weights themselves of half precision; accelerate, for FSDP2, those that are trained float32.

    Raises:
        ConfigError: if they are others.
    """
    for place, dtype in dtypes_of(model).items():
        if dtype != before.get(place, dtype):
            name = str(dtype).removeprefix("torch.")
            raise ConfigError(
                f"{engine}: mixed precision makes the weights {name}; write 'dtype: {name}' too, or drop it"
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
    if by_fsdp2(trainer.accelerator):
        trainer.is_fsdp_enabled = True
        # Sums of gradients that are not reduced yet would stand in the way of measuring a term's own.
        trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True


def by_fsdp2(accelerator: Any) -> bool:
    """Whether an accelerator shards models by FSDP2, as it is told here to do on CPUs too.

    Raises:
        ConfigError: for FSDP1.
    """
    state = accelerator.state
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if state.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        # Every further accelerator of a process takes back what the first had said, on GPUs too; the plugin stays.
        if getattr(state, "fsdp_plugin", None) is None:
            # It would write what it is given into the environment, where the next task looks for what was asked.
            with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
                state.fsdp_plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
        state.distributed_type = DistributedType.FSDP
    if state.distributed_type is not DistributedType.FSDP:
        return False
    if state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError("accelerate: fsdp_version is 1; write 'fsdp_version: 2' into the accelerate config")
    return True

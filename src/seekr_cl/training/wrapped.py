"""A model as it trains on several processes: wrapped by DDP, or sharded by FSDP2 so that its parameters are DTensors.

Accelerate does the wrapping; here is what the library needs to know of it beyond that.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from seekr_cl import ranks


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


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of the gradients in ``.grad``, of all shards together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    square = torch.stack([local(gradient).float().square().sum() for gradient in gradients]).sum()
    return float((ranks.total(square) if any(map(is_sharded, gradients)) else square).sqrt())


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

"""A model as it trains on several processes: wrapped by DDP, or sharded by FSDP2 so that its parameters are DTensors.

Accelerate does the wrapping; here is what the library needs to know of it beyond that.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from seekr_cl import ranks


def average_next(model: nn.Module, loss: Tensor) -> None:
    """Has the gradients of the next backward pass averaged over the processes, even if it is not the forward's first.

    Args:
        model: the wrapped model.
        loss: what ``backward`` will be called on.
    """
    if isinstance(model, DistributedDataParallel):
        # DDP gets ready in the forward pass and would reduce one backward pass after it, in accumulation none.
        model.reducer.prepare_for_backward([loss] if model.find_unused_parameters else [])


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

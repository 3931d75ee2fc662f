"""A model as it trains under DeepSpeed's ZeRO, which cuts up optimizer state, gradients and, in stage 3, weights.

Its engine makes the optimizer's step by itself at the end of a backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor

from seekr_cl.training.trainer_state import put_state, take_state

_WEIGHT = "weight"


def forget_former() -> None:
    """Before a Trainer: accelerate takes no second DeepSpeed plugin in a process, and each task has its own."""
    state = AcceleratorState._shared_state
    if state and AcceleratorState().distributed_type is DistributedType.DEEPSPEED:
        AcceleratorState._reset_state()


@contextmanager
def held_back(trainer: Any, last: bool) -> Iterator[None]:
    """Around one of several backward passes of a micro-batch: only the last of them is followed by the step."""
    state = trainer.accelerator.gradient_state
    due = state.sync_gradients
    if trainer.is_deepspeed_enabled:
        state._set_sync_gradients(due and last)
    try:
        yield
    finally:
        state._set_sync_gradients(due)


def take_optimizer(trainer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What this process holds of weights in full precision and of the optimizer's state, and the groups' settings."""
    outer = trainer.optimizer.optimizer
    flats = _partitions(outer)
    tensors, content = take_state(outer.optimizer, flats)
    return tensors | {f"{number}/{_WEIGHT}": flat.detach() for number, flat in flats.items()}, content


def put_optimizer(trainer: Any, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Gives back what ``take_optimizer`` took."""
    outer = trainer.optimizer.optimizer
    flats = _partitions(outer)
    with torch.no_grad():
        for number, flat in flats.items():
            flat.copy_(tensors.pop(f"{number}/{_WEIGHT}"))
    put_state(outer.optimizer, flats, tensors, content)


def _partitions(outer: Any) -> dict[str, Tensor]:
    """This process's weights in full precision by number, one for each group of the optimizer, or part of one."""
    found = getattr(outer, "fp32_partitioned_groups_flat", None)  # stage 3
    return {str(n): flat for n, flat in enumerate(outer.single_partition_of_fp32_groups if found is None else found)}

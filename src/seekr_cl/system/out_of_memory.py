"""Allocations that fail for want of memory: known by what raises them, and let go before something smaller is tried."""

import torch


class SmallerBatchWarning(UserWarning):
    """A batch did not fit into memory, and what is left is done in smaller ones."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)


def let_go() -> None:
    """Gives back what the failed attempt held; called outside of the handler, which holds the attempt's frames."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)

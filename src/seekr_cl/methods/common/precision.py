"""The precision that the Trainer runs the trained model in, for models that are asked beside it."""

import torch
from accelerate.state import AcceleratorState


def training_precision(device: torch.device | str) -> torch.autocast:
    """The autocast of training: the Trainer wraps the trained model's own forward, and no other model's.

    A teacher that computed in another precision would see a difference before anything has moved.

    Args:
        device: where the model asked stands.
    """
    # Outside of a training nothing has set the state, and nothing is mixed.
    mixed = AcceleratorState().mixed_precision if AcceleratorState._shared_state else "no"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)

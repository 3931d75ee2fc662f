"""Positions of tokens under padding on the left.

Shapes: B batch, L padded length.
"""

import inspect
from typing import Any

from torch import Tensor


def counts_from_the_edge(model: Any) -> bool:
    """Whether a model counts positions from the tensor's left edge unless it is told them, as GPT-2 does.

    Padding on the left shifts those. Rotary positions only matter by their distances, and models that cannot be told
    positions have none or count the mask's.
    """
    inner = getattr(model, "module", model)
    inner = getattr(inner, "_orig_mod", inner)
    if hasattr(inner, "peft_config"):
        inner = inner.get_base_model()
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return False
    return not any("Rotary" in type(part).__name__ for part in inner.modules())


def positions(mask_BL: Tensor) -> Tensor:
    """Each token's position among the real ones, [B, L], whichever side the padding is on; that of padding is unused.

    Args:
        mask_BL: 1 for real tokens.

    Returns:
        Positions from 0.
    """
    return (mask_BL.cumsum(-1) - 1).clamp_min(0)

"""Whether the weights' precision leaves anything of an optimizer step."""

import warnings
from typing import Any

import torch
from torch import nn

from seekr_cl.config.rates import whole_rate
from seekr_cl.tasks.keys import DataWarning

_HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half the distance between two neighboring numbers of a type, relative to the power of two below them."""

_SAMPLED = 1 << 16
_COMPENSATED = ("anyprecision", "stable_adamw", "stochastic")
"""Optimizers that carry what is rounded away, by a part of their names."""


def vanishing_share(model: nn.Module, step: float) -> float:
    """The share of the trained weights that a step of this size leaves as they are, by rounding; 0 in float32.

    Args:
        model: its first numbers of every trained weight stand for all.
        step: how far an optimizer moves a weight; Adam's is about the learning rate whatever the gradient.
    """
    lost = total = 0.0
    for weight in model.parameters():
        if not weight.requires_grad or weight.is_meta:
            continue
        total += weight.numel()
        half = _HALF.get(weight.dtype)
        if half is None:
            continue
        some = weight.detach().flatten()[:_SAMPLED].float().abs()
        below = torch.exp2(torch.floor(torch.log2(some.clamp_min(1e-30))))
        lost += weight.numel() * float((below * half >= step).float().mean())
    return lost / total if total else 0.0


def warn_if_updates_vanish(model: nn.Module, config: Any) -> None:
    """Warns of weights held in half precision that steps of ``learning_rate`` mostly leave as they are."""
    if getattr(config, "deepspeed", None) or any(part in str(config.optim) for part in _COMPENSATED):
        # DeepSpeed keeps a copy of the weights in float32.
        return
    rate, _ = whole_rate(config, model)
    share = vanishing_share(model, rate)
    if share > 0.2:
        kind = next(p.dtype for p in model.parameters() if p.requires_grad and p.dtype in _HALF)
        mixed = "bf16" if kind is torch.bfloat16 else "fp16"
        warnings.warn(
            f"dtype: {share:.0%} of the trained weights are so large that {str(kind).removeprefix('torch.')} rounds a "
            f"step of learning_rate {rate:g} away; set dtype=float32 and {mixed}=true, train an "
            "adapter (peft=lora), or raise learning_rate",
            DataWarning,
            stacklevel=3,
        )

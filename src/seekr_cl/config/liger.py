"""Liger's kernels in the place of a model's own layers: which of them compose with what is distilled here.

They are put on by the Trainer, when it begins to train. Rotary embedding, norms and feed-forward layers are the same
functions as before. Its two cross entropies are not taken: the fused one makes no logits, so that nothing here would
ever call it, and the other writes its gradient over the logits that further terms are made of.
"""

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from seekr_cl.errors import ConfigError, nearest

_NOT_TAKEN = {
    "fused_linear_cross_entropy": "makes no logits, and every loss here is made of logits",
    "cross_entropy": "writes its gradient over the logits, of which other terms are made too",
}


def liger_settings(liger: bool, given: Any, cpu: bool) -> dict[str, bool] | None:
    """The ``liger_kernel_config`` the Trainer gets: what was asked for, without Liger's losses.

    Args:
        liger: ``use_liger_kernel``.
        given: ``liger_kernel_config``.
        cpu: ``use_cpu``.

    Raises:
        ConfigError: if it would be ignored or does not compose, or if Liger is not installed or has no GPU.
    """
    if given is not None and not liger:
        raise ConfigError("liger_kernel_config: would be ignored; set use_liger_kernel: true, or remove it")
    if not liger:
        return None
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"liger_kernel_config: {given!r} is not a mapping, such as {{rope: true, swiglu: false}}")
    for name, value in (given or {}).items():
        if not isinstance(value, bool):
            raise ConfigError(f"liger_kernel_config.{name}: {value!r} is not true or false")
        if name in _NOT_TAKEN and value:
            raise ConfigError(f"liger_kernel_config.{name}: {_NOT_TAKEN[name]}; remove it")
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "use_liger_kernel: liger-kernel is not installed; install it with: pip install 'seekr-cl[liger]'"
        )
    if cpu or not torch.cuda.is_available():
        raise ConfigError("use_liger_kernel: its kernels need a GPU; remove the key")
    return dict.fromkeys(_NOT_TAKEN, False) | dict(given or {})


def check_liger(model: nn.Module, settings: Mapping[str, bool]) -> None:
    """Makes sure that Liger has kernels for a model; by itself it would pass over the model, and keys, in silence.

    Raises:
        ConfigError: naming what it has none for.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    config: Any = model.config
    patch = MODEL_TYPE_TO_APPLY_LIGER_FN.get(config.model_type)
    if patch is None:
        raise ConfigError(f"use_liger_kernel: Liger has no kernels for a '{config.model_type}' model; remove the key")
    kernels = [name for name in inspect.signature(patch).parameters if name != "model"]
    for name in settings:
        if name not in kernels and name not in _NOT_TAKEN:
            raise ConfigError(
                f"liger_kernel_config: Liger has no '{name}' for a '{config.model_type}' model{nearest(name, kernels)}"
            )

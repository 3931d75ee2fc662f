"""Which layers of a family an adapter can be put on, and weights of adapters that PEFT would put elsewhere."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

_ALL = "all-linear"
_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_MAMBA_LAYERS = ("out_proj", "conv1d")
"""PEFT refuses these layers of these families: their kernels read the weight and never call the layer."""


def leave_out(model: nn.Module, config: Any) -> None:
    """Takes out of "all-linear" what is a linear layer by class alone: a router that returns a tuple, grouped layers.

    Args:
        model: without an adapter.
        config: PEFT's; its ``exclude_modules`` is changed. Layers that somebody named stay.
    """
    asked = getattr(config, "target_modules", None)
    if not isinstance(asked, str) or asked.lower() != _ALL or not hasattr(config, "exclude_modules"):
        return
    left = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and _is_special(part)]
    if getattr(getattr(model, "config", None), "model_type", None) in _MAMBA:
        left += [name for name, _ in model.named_modules() if name.rpartition(".")[2] in _MAMBA_LAYERS]
    own = config.exclude_modules
    if left and not isinstance(own, str):
        config.exclude_modules = {*(own or ()), *left}


def special_layers(model: nn.Module) -> list[str]:
    """Layers with an adapter on them that do more than a linear layer, by name: the adapter would add to a tuple."""
    based = ((name, getattr(part, "base_layer", None)) for name, part in model.named_modules())
    return [
        name.removeprefix("base_model.model.")
        for name, base in based
        if isinstance(base, nn.Linear) and _is_special(base)
    ]


def _is_special(layer: nn.Linear) -> bool:
    """Whether a model's own code says what the layer does; torch's and the quantizing libraries' are plain ones."""
    return type(layer).forward is not nn.Linear.forward and type(layer).__module__.startswith("transformers")


def put_exactly(model: Any, folder: Path, name: str) -> bool:
    """Puts an adapter's weights where their names say, if these are just the adapter's.

    PEFT renames the keys of adapters as transformers renames those of old checkpoints, also where they have the new
    names already, and then misses them.

    Args:
        model: PEFT's, with the adapter in place.
        folder: the adapter's.
        name: what PEFT calls it.

    Returns:
        Whether all of them have been put.
    """
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    saved = load_file(folder / "adapter_model.safetensors")
    if own.keys() != saved.keys() or any(own[key].shape != saved[key].shape for key in own):
        return False
    with torch.no_grad():
        for key, weight in own.items():
            weight.copy_(saved[key])
    return True

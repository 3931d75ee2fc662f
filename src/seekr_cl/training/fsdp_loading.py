"""A large model is loaded once: process 0 reads it, the others build it without weights and get their rows of it.

``fsdp_cpu_ram_efficient_loading: true`` in the accelerate config asks for it. What comes before training looks at the
model too, so it is sharded as soon as it is there, and not by the Trainer.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import distribute_tensor

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.distributed.engines import by_fsdp2, dtypes_of, require_dtypes
from seekr_cl.errors import ModelError


def is_asked() -> bool:
    """Whether the accelerate config wants a model that is sharded by FSDP2 to be loaded once."""
    wanted = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    return (
        collectives.world_size() > 1 and all(map(parse_flag_from_env, wanted)) and os.environ.get("FSDP_VERSION") == "2"
    )


def hindrance(config: SeekrConfig) -> str | None:
    """The setting that needs all of the model in every process, if there is one."""
    method = config.method.kind
    if config.quantization is not None:
        return f"quantization: {config.quantization}"
    if method.frozen_copy or method.weight_access == "whole":
        return f"method {method.name}"
    return "fsdp_offload_params" if parse_flag_from_env("FSDP_OFFLOAD_PARAMS") else None


@torch.no_grad()
def shard(model: Any, config: SeekrConfig) -> None:
    """Shards a model of which process 0 has the weights; every process gets its rows on its device.

    Args:
        model: on the CPU in process 0, on the meta device elsewhere.
        config: all settings.

    Raises:
        ModelError: if the processes' models are not the same.
        ConfigError: if mixed precision would make the weights another type.
    """
    first, device = collectives.is_main(), config.device
    accelerator: Any = Accelerator(mixed_precision=config.mixed_precision)
    by_fsdp2(accelerator)
    # Accelerate's own way of doing it fails for buffers that are saved, and takes the others from each process.
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    _require_same(model)
    dtypes = dtypes_of(model)
    whole: dict[str, Tensor] = dict(model.named_parameters()) if first else {}
    buffers = collectives.all_gather_tensors(
        {name: buffer.clone() for name, buffer in model.named_buffers()} if first else {}
    )[0]
    model.to("meta")
    model.tie_weights()
    fsdp2_prepare_model(accelerator, model)
    require_dtypes(model, dtypes, "FSDP")
    pieces = {}
    for name, place in model.named_parameters():
        # Elsewhere only the shape is looked at, and nothing ever written into it.
        given = whole.pop(name).to(device, place.dtype) if first else torch.empty(place.shape, dtype=place.dtype)
        piece = distribute_tensor(given.to(device), place.device_mesh, place.placements)
        pieces[id(place)] = nn.Parameter(piece, place.requires_grad)
    named = model.named_parameters(remove_duplicate=False)
    model.load_state_dict({name: pieces[id(place)] for name, place in named}, strict=False, assign=True)
    model.tie_weights()
    for name, buffer in buffers.items():
        module, _, last = name.rpartition(".")
        model.get_submodule(module)._buffers[last] = buffer.to(device)
    # Or else whichever part of it runs first, alone, would be taken for the whole.
    model._get_fsdp_state()._lazy_init()


def _require_same(model: nn.Module) -> None:
    own = {name: [str(weight.dtype), list(weight.shape)] for name, weight in model.named_parameters()}
    if any(other != own for other in collectives.all_gather_object(own)):
        raise ModelError(
            "fsdp_cpu_ram_efficient_loading: this model is another one without its weights; write "
            "'fsdp_cpu_ram_efficient_loading: false' into the accelerate config"
        )

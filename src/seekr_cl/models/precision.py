"""A model that computes in another precision for a while."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seekr_cl.distributed.dtensor import is_sharded


@contextmanager
def computing_in(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Holds the model's weights in another precision for the length of a ``with`` block; the same tensors come back.

    Autocast would do too for training, but casts every weight again for each new token. Buffers stay as they are, as
    when a model is loaded in half precision: frequencies of rotary positions lose too much there. So do weights that
    the model declares to be float32, and those in four or eight bits.

    LoRA's products are added to weights that are cast anyway, in their own precision: a fifth of a prompt's time and
    a quarter of each new token's goes into its small matrices otherwise.

    Args:
        model: of transformers or PEFT.
        dtype: ``None`` is as the weights are, those of adapters as those of a base model in half precision: in float32,
            as PEFT trains them, they would make every layer compute there and back (1.4 times the seconds for the
            same answers on a CPU).
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if dtype is None and base is not model and base.dtype in (torch.bfloat16, torch.float16):
        dtype = base.dtype
    kept_wide = [re.escape(name) for name in getattr(base, "_keep_in_fp32_modules_strict", None) or ()]
    wide = re.compile(rf"(^|\.)({'|'.join(kept_wide)})(\.|$)") if kept_wide else None
    own: list[tuple[nn.Parameter, Tensor]] = []
    adapted = _mergeable(model) if dtype is not None else {}
    merged: list[Any] = []
    try:
        named = list(model.named_parameters()) if dtype is not None else []
        # An adapter's factors are what they are until their product is added.
        for name, weight in sorted(named, key=lambda one: one[1] not in adapted):
            if weight.is_floating_point() and weight.dtype != dtype and not (wide and wide.search(name)):
                own.append((weight, weight.data))
                layer = adapted.get(weight)
                if layer is not None:
                    merged.append(layer)
                weight.data = _with_adapter(weight.data, layer).to(dtype)
        for layer in merged:
            layer.merged_adapters.extend(layer.active_adapters)
        yield
    finally:
        for layer in merged:
            layer.merged_adapters.clear()
        for weight, data in own:
            weight.data = data


def _mergeable(model: Any) -> dict[Tensor, Any]:
    """PEFT's plain LoRA layers by the weight each of them belongs to alone."""
    if not hasattr(model, "peft_config") or hasattr(model, "ask") or getattr(model, "query_conditioned", False):
        return {}
    from peft.tuners.lora import Linear

    found: dict[Tensor, Any] = {}
    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear and _adds_a_product(layer):
            found[layer.base_layer.weight] = layer
    # A head's may be the embeddings' too, which its adapter is no part of.
    counts = Counter(weight for _, weight in model.named_parameters(remove_duplicate=False))
    return {weight: layer for weight, layer in found.items() if counts[weight] == 1}


def _adds_a_product(layer: Any) -> bool:
    names = layer.active_adapters
    variants = getattr(layer, "lora_variant", {})
    plain = len(names) == 1 and names[0] in layer.lora_A and names[0] not in variants
    if not plain or layer.merged or layer.disable_adapters or is_sharded(layer.base_layer.weight):
        return False
    # A bias of its own is another thing to add.
    return not layer.lora_bias[names[0]] and layer.lora_A[names[0]].weight.dtype == layer.base_layer.weight.dtype


@torch.no_grad()
def _with_adapter(weight: Tensor, layer: Any) -> Tensor:
    return weight if layer is None else weight + layer.get_delta_weight(layer.active_adapters[0])

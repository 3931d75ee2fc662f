"""From the arguments of an attention function to an ``AttentionCall``.

The functions behind transformers' names do not all heed the same arguments: packed sequences are in the mask under
sdpa, eager and flex attention, and in ``position_ids`` or ``cu_seq_lens_q`` under flash attention. Whatever would
change the attention and cannot be read from a call is an error, never a silent difference.

Shapes: B batch, H query heads, L sequence length.
"""

from typing import Any

import torch
from torch import Tensor, nn

from seekr_cl.attention.call import AttentionCall
from seekr_cl.attention.masks import add_bias
from seekr_cl.errors import ModelError


def read_call(
    name: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
) -> AttentionCall:
    """What one layer's attention was asked to do.

    Args:
        name: the implementation's name in transformers ("sdpa", "eager", "flash_attention_2", ...).
        module: the attention layer.
        query: [B, H, L, D].
        key: [B, K, L, D].
        value: [B, K, L, D of the values].
        mask: as the implementation gets it.
        kwargs: the other arguments.

    Raises:
        ModelError: for attention that is not causal self-attention over one key a token, or that depends on something
            which only the kernel knows.
    """
    kind = type(module).__name__
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ModelError(f"{kind} does not know its layer index, so its attention cannot be attributed to a layer")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ModelError(f"{kind} (layer {layer}) attends in both directions; only causal attention can be distilled")
    if key.shape[2] != query.shape[2]:
        raise ModelError(
            f"{kind} (layer {layer}) has {key.shape[2]} keys for {query.shape[2]} tokens (cross attention, compressed "
            "keys or a cache); only attention with one key a token can be distilled"
        )
    flash = "flash" in name
    if flash and any(kwargs.get(sparse) is not None for sparse in ("indices", "block_indices")):
        raise ModelError(f"{kind} picks its keys inside the flash kernel; load the model with 'sdpa' or 'eager'")
    if (bias := kwargs.get("position_bias")) is not None:
        mask = add_bias(mask, bias, kwargs.get("sliding_window"))
    scaling = kwargs.get("scaling")
    return AttentionCall(
        layer=layer,
        q_BHLD=query,
        k_BKLD=key,
        v_BKLD=value,
        mask=mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        window=kwargs.get("sliding_window"),
        sink_H=_sinks(module, query.shape[1], kwargs),
        segment_BL=_segments(query, kwargs) if flash and mask is None else None,
    )


def _sinks(module: nn.Module, heads: int, kwargs: dict[str, Any]) -> Tensor | None:
    """Each head's sink; eager functions take it from the module, flash and flex attention from the arguments."""
    sinks = kwargs.get("s_aux")
    if sinks is None:
        sinks = getattr(module, "sinks", None)
    if not isinstance(sinks, Tensor):
        return None
    if sinks.numel() != heads:
        raise ModelError(f"{type(module).__name__} has sinks of shape {tuple(sinks.shape)} for {heads} heads")
    return sinks.reshape(heads)


def _segments(query: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """Number of each token's packed sequence, by the rules of transformers' flash attention without a mask.

    Boundaries given in ``cu_seq_lens_q`` win; otherwise a single row of ``position_ids`` starts a sequence at each 0.
    With several rows the positions are not looked at, so packing is not there.
    """
    batch, _, length, _ = query.shape
    if all(kwargs.get(key) is not None for key in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")):
        token_N = torch.arange(batch * length, device=query.device)
        ends = kwargs["cu_seq_lens_q"].to(device=query.device, dtype=token_N.dtype)
        return torch.searchsorted(ends, token_N, right=True).view(batch, length)
    positions = kwargs.get("position_ids")
    if positions is None or batch != 1 or positions.dim() != 2:
        return None
    return (positions == 0).cumsum(-1)

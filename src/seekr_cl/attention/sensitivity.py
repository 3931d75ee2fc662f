"""Task sensitivity of attention heads without attention maps: ||dL/dA||_F^2 in closed form.

The output of a head is O = A V, so dL/dA = dO V^T, and its squared Frobenius norm over all entries is
sum((dO^T dO) * (V^T V)): linear in the sequence length. Restricted to causal, real entries it is the same product
with a running sum of V^T V, done in chunks.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D value head size, G heads per key/value head.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 128


def squared_norm_all(dO_BLHD: Tensor, v_BKLD: Tensor) -> Tensor:
    """Squared norm of dL/dA over all L x L entries, masked and padded ones included (the official code's measure).

    Returns:
        [B, H], float32 or wider.
    """
    dO_BKGLD, v_BKLD = _grouped(dO_BLHD, v_BKLD)
    gram_V_BKDD = v_BKLD.mT @ v_BKLD
    gram_O_BKGDD = dO_BKGLD.mT @ dO_BKGLD
    return (gram_O_BKGDD * gram_V_BKDD[:, :, None]).sum((-1, -2)).flatten(1)


def squared_norm_valid(
    dO_BLHD: Tensor, v_BKLD: Tensor, real_BL: Tensor, window: int | None = None, chunk: int = CHUNK
) -> Tensor:
    """Squared norm of dL/dA over the entries a head can really use: real queries and real keys, causal, in the window.

    Args:
        dO_BLHD: gradient of the loss with respect to the attention output.
        v_BKLD: values.
        real_BL: true where the token is not padding.
        window: keys further back than this are masked by the layer.
        chunk: queries handled at a time; memory is O(L * chunk) at the most.

    Returns:
        [B, H], float32 or wider.
    """
    real_BL = real_BL.bool()
    dO_BKGLD, v_BKLD = _grouped(dO_BLHD * real_BL[:, :, None, None], v_BKLD * real_BL[:, None, :, None])
    length = v_BKLD.shape[2]
    total_BKG = dO_BKGLD.new_zeros(dO_BKGLD.shape[:3])
    prefix_BKDD = v_BKLD.new_zeros((*v_BKLD.shape[:2], v_BKLD.shape[3], v_BKLD.shape[3]))
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        dO_BKGCD = dO_BKGLD[:, :, :, start:stop]
        # A window makes the running sum useless (keys leave it again), so the band is computed directly.
        first = start if window is None else max(0, start - window + 1)
        keys_BKMD = v_BKLD[:, :, first:stop]
        if window is None:
            gram_BKGDD = dO_BKGCD.mT @ dO_BKGCD
            total_BKG = total_BKG + (gram_BKGDD * prefix_BKDD[:, :, None]).sum((-1, -2))
            prefix_BKDD = prefix_BKDD + keys_BKMD.mT @ keys_BKMD
        grad_BKGCM = dO_BKGCD @ keys_BKMD[:, :, None].mT
        query_C = torch.arange(start, stop, device=v_BKLD.device)[:, None]
        key_M = torch.arange(first, stop, device=v_BKLD.device)
        seen_CM = key_M <= query_C
        if window is not None:
            seen_CM &= key_M > query_C - window
        total_BKG = total_BKG + (grad_BKGCM.square() * seen_CM).sum((-1, -2))
    return total_BKG.flatten(1)


def squared_norm_seen(dO_BLHD: Tensor, v_BKLD: Tensor, seen_BLL: Tensor, chunk: int = CHUNK) -> Tensor:
    """Squared norm of dL/dA over any entries, for masks that are more than causal.

    Args:
        dO_BLHD: gradient of the loss with respect to the attention output.
        v_BKLD: values.
        seen_BLL: true for the entries that count; none of them acausal.
        chunk: queries handled at a time.

    Returns:
        [B, H], float32 or wider.
    """
    dO_BKGLD, v_BKLD = _grouped(dO_BLHD, v_BKLD)
    total_BKG = dO_BKGLD.new_zeros(dO_BKGLD.shape[:3])
    for start in range(0, v_BKLD.shape[2], chunk):
        stop = min(start + chunk, v_BKLD.shape[2])
        grad_BKGCM = dO_BKGLD[:, :, :, start:stop] @ v_BKLD[:, :, None, :stop].mT
        seen_BCM = seen_BLL[:, start:stop, :stop]
        total_BKG = total_BKG + torch.where(seen_BCM[:, None, None], grad_BKGCM, 0).square().sum((-1, -2))
    return total_BKG.flatten(1)


def count_valid(real_BL: Tensor, window: int | None = None) -> Tensor:
    """How many entries ``squared_norm_valid`` runs over, int64 [B] on the CPU."""
    length_B = real_BL.sum(1).cpu()
    if window is None:
        return length_B * (length_B + 1) // 2
    inside_B = length_B.clamp(max=window)
    return inside_B * (inside_B + 1) // 2 + (length_B - inside_B) * window


def _grouped(dO_BLHD: Tensor, v_BKLD: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients as [B, K, G, L, D] beside v [B, K, L, D], both at least float32."""
    dtype = torch.promote_types(dO_BLHD.dtype, torch.float32)
    batch, length, heads, size = dO_BLHD.shape
    kv_heads = v_BKLD.shape[1]
    dO_BHLD = dO_BLHD.to(dtype).transpose(1, 2)
    return dO_BHLD.reshape(batch, kv_heads, heads // kv_heads, length, size), v_BKLD.to(dtype)


class OutputGradientTap(torch.autograd.Function):
    """The identity on an attention output; its backward hands dO and V to ``receive``."""

    @staticmethod
    def forward(ctx: Any, output_BLHD: Tensor, v_BKLD: Tensor, receive: Any) -> Tensor:
        """Passes the output on unchanged."""
        ctx.save_for_backward(v_BKLD)
        ctx.receive = receive
        return output_BLHD.view_as(output_BLHD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Calls ``receive(dO, V)`` and passes dO on unchanged."""
        (dO_BLHD,) = grads
        ctx.receive(dO_BLHD, ctx.saved_tensors[0])
        return dO_BLHD, None, None

"""Which keys the chosen queries of one layer may see, whatever form the backend gives its mask.

Shapes: B batch, H query heads, Q = L sequence length, P (sample, head) pairs, R query rows per pair.
"""

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.errors import ModelError


def causal_rows(query_PR: Tensor, length: int, window: int | None) -> Tensor:
    """Keys at or before each query, within ``window`` positions if the layer slides.

    Returns:
        bool [P, R, L].
    """
    key_L = torch.arange(length, device=query_PR.device)
    allowed_PRL = key_L <= query_PR[..., None]
    if window is not None:
        allowed_PRL &= key_L > query_PR[..., None] - window
    return allowed_PRL


def mask_scores(score_PRL: Tensor, call: AttentionCall, index: RowIndex) -> Tensor:
    """Applies the mask that the attention function received to the recomputed rows.

    A missing mask means causal attention (sdpa and flash rely on ``is_causal``); a 2-D mask marks the real keys
    (flash); a 4-D mask is boolean (sdpa) or additive (eager), for all heads or for each one.

    Masked scores become the dtype's minimum rather than minus infinity, so that a row with nothing to see stays
    finite: such rows carry no weight in any loss, but 0 * nan would.

    Returns:
        scores [P, R, L], in place where possible.

    Raises:
        ModelError: for a mask of a kind that cannot be read row by row (flex attention's BlockMask).
    """
    mask, window, query_PR = call.mask, call.window, index.query_PR
    lowest = torch.finfo(score_PRL.dtype).min
    length = score_PRL.shape[-1]
    if mask is None:
        return score_PRL.masked_fill_(~causal_rows(query_PR, length, window), lowest)
    if not isinstance(mask, Tensor):
        raise ModelError(
            f"attention masks of type {type(mask).__name__} cannot be read row by row; "
            "load the model with attn_implementation='sdpa', 'eager' or flash attention"
        )
    if mask.dim() == 2:
        allowed_PRL = causal_rows(query_PR, length, window) & mask.bool()[index.sample_P, None, :length]
        return score_PRL.masked_fill_(~allowed_PRL, lowest)
    rows_PRL = gather_mask_rows(mask, index)[..., :length]
    if rows_PRL.dtype == torch.bool:
        return score_PRL.masked_fill_(~rows_PRL, lowest)
    return (score_PRL + rows_PRL).clamp_(min=lowest)


def gather_mask_rows(mask_BHQL: Tensor, index: RowIndex) -> Tensor:
    """The rows [P, R, L] of a 4-D mask whose batch and head axes may be of size one."""
    sample_P, head_P = index.sample_P, index.head_P
    sample_P1 = (sample_P if mask_BHQL.shape[0] > 1 else torch.zeros_like(sample_P))[:, None]
    head_P1 = (head_P if mask_BHQL.shape[1] > 1 else torch.zeros_like(head_P))[:, None]
    return mask_BHQL[sample_P1, head_P1, index.query_PR]

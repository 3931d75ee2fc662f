"""Attention rows recomputed from queries and keys, in tiles, on top of the model's own fast kernel.

Only the rows that a method asks for are computed, from the q and k that the kernel was given and under its mask,
whatever form the backend gives that; nothing of size L x L is built. A missing mask means causal attention (sdpa and
flash rely on ``is_causal``), inside a packed sequence if the call has any; a 2-D mask marks the real keys (flash); a
4-D mask is boolean (sdpa) or additive (eager), for all heads or for each one; a BlockMask (flex attention) is a
function of positions.

Shapes: B batch, H query heads, K key/value heads, Q = L sequence length, D head size, P (sample, head) pairs,
R query rows per pair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.errors import ModelError


@dataclass(frozen=True, slots=True)
class RowScores:
    """Masked scores of some rows with the q and k they came from, all at least float32.

    Attributes:
        score_PRL: masked entries are at the dtype's minimum.
        q_PRD: the rows' queries.
        k_PLD: the pairs' keys.
        slope_PRL: what the soft-cap lets through of a change in the scores; ``None`` without a cap.
        sink_P: each pair's sink score; ``None`` without sinks.
    """

    score_PRL: Tensor
    q_PRD: Tensor
    k_PLD: Tensor
    slope_PRL: Tensor | None
    sink_P: Tensor | None

    def log_normaliser(self) -> Tensor:
        """Log of the summed exponentials of each row's scores, the sink's among them: [P, R]."""
        lse_PR = self.score_PRL.logsumexp(-1)
        return lse_PR if self.sink_P is None else torch.logaddexp(lse_PR, self.sink_P[:, None])


def student_scores(call: AttentionCall, index: RowIndex) -> RowScores:
    """Scores of the rows the model computes now."""
    kept = torch.promote_types(call.q_BHLD.dtype, torch.float32)
    q_PRD = call.q_BHLD[index.sample_P[:, None], index.head_P[:, None], index.query_PR].to(kept)
    k_PLD = call.k_BKLD[index.sample_P, index.head_P // call.group].to(kept)
    sink_P = None if call.sink_H is None else call.sink_H[index.head_P].to(kept)
    return row_scores(q_PRD, k_PLD, sink_P, call, index)


def row_scores(q_PRD: Tensor, k_PLD: Tensor, sink_P: Tensor | None, call: AttentionCall, index: RowIndex) -> RowScores:
    """Scores of any queries and keys, scaled, capped and masked as in ``call``."""
    with torch.autocast(q_PRD.device.type, enabled=False):
        score_PRL = (q_PRD * call.scaling) @ k_PLD.mT
    slope_PRL = None
    if call.softcap is not None:
        capped_PRL = torch.tanh(score_PRL / call.softcap)
        score_PRL, slope_PRL = call.softcap * capped_PRL, 1 - capped_PRL.square()
    return RowScores(mask_scores(score_PRL, call, index), q_PRD, k_PLD, slope_PRL, sink_P)


def row_probabilities(scores: RowScores) -> Tensor:
    """Softmax of the scores with the sink in it: [P, R, L]."""
    if scores.sink_P is None:
        return scores.score_PRL.softmax(-1)
    return (scores.score_PRL - scores.log_normaliser()[..., None]).exp_()


@torch.no_grad()
def attention_rows(call: AttentionCall, index: RowIndex) -> Tensor:
    """Attention probabilities of the chosen rows, equal to the eager implementation's.

    Rows of a model with sinks sum to less than one: what is missing went to the sink.

    Returns:
        [P, R, L], float32 or wider, without gradient.
    """
    length, size = call.k_BKLD.shape[2:]
    rows = []
    for tile in index.tiles(length, size):
        scores = student_scores(call, index[tile])
        rows.append(row_probabilities(scores))
    if not rows:
        kept = torch.promote_types(call.q_BHLD.dtype, torch.float32)
        return call.q_BHLD.new_zeros((0, index.query_PR.shape[1], length), dtype=kept)
    return torch.cat(rows)


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
    """Scores [P, R, L] under the mask that the attention function received, in place where possible.

    Masked scores become the dtype's minimum rather than minus infinity, so that a row with nothing to see stays
    finite: such rows carry no weight in any loss, but 0 * nan would. ModelError if a mask cannot be read row by row.
    """
    mask, length = call.mask, score_PRL.shape[-1]
    lowest = torch.finfo(score_PRL.dtype).min
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.dtype != torch.bool:
        return (score_PRL + gather_mask_rows(mask, index)[..., :length]).clamp_(min=lowest)
    return score_PRL.masked_fill_(~_seen_rows(call, index, length), lowest)


def _seen_rows(call: AttentionCall, index: RowIndex, length: int) -> Tensor:
    """Keys that the rows' queries see, bool [P, R, L]."""
    mask = call.mask
    if mask is None:
        allowed_PRL = causal_rows(index.query_PR, length, call.window)
        if call.segment_BL is None:
            return allowed_PRL
        segment_PL = call.segment_BL[index.sample_P]
        return allowed_PRL & (segment_PL.gather(1, index.query_PR)[..., None] == segment_PL[:, None])
    if isinstance(mask, BlockMask):
        key_L = torch.arange(length, device=index.query_PR.device)
        seen_PRL = mask.mask_mod(
            index.sample_P[:, None, None], index.head_P[:, None, None], index.query_PR[..., None], key_L
        )
        return seen_PRL.expand(*index.query_PR.shape, length)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return causal_rows(index.query_PR, length, call.window) & mask.bool()[index.sample_P, None, :length]
    if isinstance(mask, Tensor) and mask.dim() == 4:
        rows_PRL = gather_mask_rows(mask, index)[..., :length]
        return rows_PRL if rows_PRL.dtype == torch.bool else rows_PRL > torch.finfo(rows_PRL.dtype).min / 2
    raise ModelError(
        f"attention masks of type {type(mask).__name__} cannot be read row by row; "
        "load the model with attn_implementation='sdpa', 'eager', 'flex_attention' or flash attention"
    )


def seen_entries(call: AttentionCall, real_BL: Tensor) -> Tensor | None:
    """Entries that real queries and real keys have, where the mask allows fewer than causality and the window.

    Chunked attention, sparse keys and packed sequences are such masks. One that differs from head to head is not looked
    at: what a head of its own masks away is still counted.

    Args:
        call: the layer's call.
        real_BL: true where a token is real.

    Returns:
        bool [B, L, L], or ``None`` where the mask says nothing more.
    """
    mask = call.mask
    if (mask is None and call.segment_BL is None) or (isinstance(mask, Tensor) and mask.dim() == 2):
        return None
    if isinstance(mask, Tensor) and mask.shape[1] > 1:
        return None
    real_BL = real_BL.bool()
    query_1L = torch.arange(real_BL.shape[1], device=real_BL.device)[None]
    causal_1LL = causal_rows(query_1L, real_BL.shape[1], call.window)
    seen, narrower = [], False
    for number, real_L in enumerate(real_BL):
        sample_P = torch.full((1,), number, device=real_BL.device)
        both_1LL = causal_1LL & real_L[:, None] & real_L
        rows_1LL = _seen_rows(call, RowIndex(sample_P, torch.zeros_like(sample_P), query_1L), len(real_L))
        seen.append(rows_1LL & both_1LL)
        narrower = narrower or not torch.equal(seen[-1], both_1LL)
    return torch.cat(seen) if narrower else None


def add_bias(mask: object, bias: Tensor, window: int | None) -> Tensor:
    """One additive 4-D mask of a mask and a bias on the scores; gradients flow into the bias.

    Args:
        mask: ``None`` (causal), boolean or additive [B, H, L, L], axes of size one allowed.
        bias: added to the scores, [B, H, L, L], axes of size one allowed.
        window: used with a missing mask only.

    Raises:
        ModelError: for other masks.
    """
    if mask is None:
        length = bias.shape[-1]
        mask = causal_rows(torch.arange(length, device=bias.device), length, window)[None, None]
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ModelError("a position bias cannot be read with this implementation's mask; use 'sdpa' or 'eager'")
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def gather_mask_rows(mask_BHQL: Tensor, index: RowIndex) -> Tensor:
    """The rows [P, R, L] of a 4-D mask whose batch and head axes may be of size one."""
    return mask_BHQL[_mask_places(mask_BHQL, index)]


def add_to_mask_rows(mask_BHQL: Tensor, rows_PRL: Tensor, index: RowIndex) -> None:
    """Adds to the rows that ``gather_mask_rows`` takes, in place; a row taken twice gets both."""
    length = rows_PRL.shape[-1]
    mask_BHQL[..., :length].index_put_(_mask_places(mask_BHQL, index), rows_PRL.to(mask_BHQL.dtype), accumulate=True)


def _mask_places(mask_BHQL: Tensor, index: RowIndex) -> tuple[Tensor, Tensor, Tensor]:
    sample_P, head_P = index.sample_P, index.head_P
    sample_P1 = (sample_P if mask_BHQL.shape[0] > 1 else torch.zeros_like(sample_P))[:, None]
    head_P1 = (head_P if mask_BHQL.shape[1] > 1 else torch.zeros_like(head_P))[:, None]
    return sample_P1, head_P1, index.query_PR

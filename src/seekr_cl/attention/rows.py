"""Attention rows recomputed from queries and keys, and the divergence between a teacher's rows and the model's.

The model keeps its own fast kernel; only the rows that a method asks for are computed here, in tiles, from the q and
k that the kernel was given. Nothing of size L x L is built and no student probability is kept for the backward pass.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D head size,
P (sample, head) pairs, R query rows per pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention.masks import mask_scores

TILE_ELEMENTS = 1 << 22
"""Scores computed at a time (16 MB in float32): what bounds the extra memory."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer's attention function was called with.

    Attributes:
        layer: the module's ``layer_idx``.
        q_BHLD: queries after rotary embedding and query norm.
        k_BKLD: keys, with their own (grouped) heads.
        v_BKLD: values.
        mask: as the backend received it; see ``masks.mask_scores``.
        scaling: factor on the scores.
        softcap: bound of the tanh on the scores, if the model has one.
        window: sliding window of this layer, if it has one.
    """

    layer: int
    q_BHLD: Tensor
    k_BKLD: Tensor
    v_BKLD: Tensor
    mask: Any
    scaling: float
    softcap: float | None = None
    window: int | None = None

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.q_BHLD.shape[1] // self.k_BKLD.shape[1]


@dataclass(frozen=True, slots=True)
class RowIndex:
    """The rows wanted from one layer: R query positions for each of P (sample, head) pairs.

    Attributes:
        sample_P: index into the batch.
        head_P: query head.
        query_PR: query positions in the padded sequence; a pair with fewer rows repeats any valid position and
            gives the surplus no weight.
    """

    sample_P: Tensor
    head_P: Tensor
    query_PR: Tensor

    def __getitem__(self, pairs: slice) -> "RowIndex":
        return RowIndex(self.sample_P[pairs], self.head_P[pairs], self.query_PR[pairs])

    def tiles(self, length: int) -> Iterator[slice]:
        """Slices over the pairs, each of at most ``TILE_ELEMENTS`` scores."""
        step = max(1, TILE_ELEMENTS // max(1, self.query_PR.shape[1] * length))
        return (slice(start, start + step) for start in range(0, len(self.sample_P), step))


@dataclass(frozen=True, slots=True)
class _Scores:
    """Masked scores of some rows with the q and k they came from, all at least float32.

    ``slope_PRL`` is what the soft-cap lets through of a change in the scores; ``None`` without a cap.
    """

    score_PRL: Tensor
    q_PRD: Tensor
    k_PLD: Tensor
    slope_PRL: Tensor | None


def _scores(call: AttentionCall, index: RowIndex) -> _Scores:
    kept = torch.promote_types(call.q_BHLD.dtype, torch.float32)
    with torch.autocast(call.q_BHLD.device.type, enabled=False):
        q_PRD = call.q_BHLD[index.sample_P[:, None], index.head_P[:, None], index.query_PR].to(kept)
        k_PLD = call.k_BKLD[index.sample_P, index.head_P // call.group].to(kept)
        score_PRL = (q_PRD @ k_PLD.mT).mul_(call.scaling)
        slope_PRL = None
        if call.softcap is not None:
            capped_PRL = torch.tanh(score_PRL / call.softcap)
            score_PRL, slope_PRL = call.softcap * capped_PRL, 1 - capped_PRL.square()
    score_PRL = mask_scores(score_PRL, call.mask, index.sample_P, index.head_P, index.query_PR, call.window)
    return _Scores(score_PRL, q_PRD, k_PLD, slope_PRL)


@torch.no_grad()
def attention_rows(call: AttentionCall, index: RowIndex) -> Tensor:
    """Attention probabilities of the chosen rows, equal to the eager implementation's.

    Returns:
        [P, R, L], float32 or wider, without gradient.
    """
    length = call.k_BKLD.shape[2]
    rows = [_scores(call, index[tile]).score_PRL.softmax(-1) for tile in index.tiles(length)]
    if not rows:
        return call.q_BHLD.new_zeros((0, index.query_PR.shape[1], length))
    return torch.cat(rows)


class RowKL(torch.autograd.Function):
    """sum_pr weight_pr KL(teacher_pr, student_pr), forward and backward recomputed in tiles (paper eq. 5 and 12).

    With scores s and student probabilities p = softmax(s), KL(T, p) = sum T (log T - log p), and its gradient with
    respect to s is p sum T - T. A positive ``eps`` gives the official code's log(p + eps).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BHLD: Tensor,
        k_BKLD: Tensor,
        call: AttentionCall,
        index: RowIndex,
        teacher_PRL: Tensor,
        weight_PR: Tensor,
        eps: float,
    ) -> Tensor:
        """Returns the weighted sum as a scalar of at least float32."""
        ctx.save_for_backward(q_BHLD, k_BKLD)
        ctx.rest = (call, index, teacher_PRL, weight_PR, eps)
        total = teacher_PRL.new_zeros((), dtype=torch.promote_types(q_BHLD.dtype, torch.float32))
        for tile in index.tiles(k_BKLD.shape[2]):
            score_PRL = _scores(call, index[tile]).score_PRL
            T_PRL = teacher_PRL[tile].to(score_PRL.dtype)
            logp_PRL = torch.log(score_PRL.softmax(-1) + eps) if eps else score_PRL.log_softmax(-1)
            # Entry by entry, not as a difference of large sums, which would drown a small divergence in rounding.
            kl_PR = (torch.special.xlogy(T_PRL, T_PRL) - T_PRL * logp_PRL).sum(-1)
            total = total + (weight_PR[tile] * kl_PR).sum()
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for q and k only; the teacher and the weights are data."""
        (scale,) = grads
        q_BHLD, k_BKLD = ctx.saved_tensors
        call, index, teacher_PRL, weight_PR, eps = ctx.rest
        # The model's q and k may be strided; the sums need plain memory.
        dq_BHLD, dk_BKLD = q_BHLD.new_zeros(q_BHLD.shape), k_BKLD.new_zeros(k_BKLD.shape)
        for tile in index.tiles(k_BKLD.shape[2]):
            part = index[tile]
            scores = _scores(call, part)
            T_PRL = teacher_PRL[tile].to(scores.score_PRL.dtype)
            p_PRL = scores.score_PRL.softmax(-1)
            pull_PRL = T_PRL * p_PRL / (p_PRL + eps) if eps else T_PRL
            ds_PRL = (p_PRL * pull_PRL.sum(-1, keepdim=True) - pull_PRL) * (scale * weight_PR[tile])[..., None]
            if scores.slope_PRL is not None:
                ds_PRL = ds_PRL * scores.slope_PRL
            ds_PRL = ds_PRL * call.scaling
            heads, kv_heads, length = q_BHLD.shape[1], k_BKLD.shape[1], q_BHLD.shape[2]
            row_PR = (part.sample_P * heads + part.head_P)[:, None] * length + part.query_PR
            _add_at(dq_BHLD.view(-1, q_BHLD.shape[3]), row_PR.flatten(), (ds_PRL @ scores.k_PLD).flatten(0, 1))
            kv_P = part.sample_P * kv_heads + part.head_P // call.group
            _add_at(dk_BKLD.view(k_BKLD.shape[0] * kv_heads, -1), kv_P, (ds_PRL.mT @ scores.q_PRD).flatten(1))
        return dq_BHLD, dk_BKLD, None, None, None, None, None


def _add_at(sum_NC: Tensor, index_M: Tensor, part_MC: Tensor) -> None:
    """Adds rows in place; ``index_put_`` would add in any order when threads share the work, and not repeat itself."""
    sum_NC.scatter_add_(0, index_M[:, None].expand_as(part_MC), part_MC.to(sum_NC.dtype))


def row_kl(call: AttentionCall, index: RowIndex, teacher_PRL: Tensor, weight_PR: Tensor, eps: float = 0.0) -> Tensor:
    """Weighted divergence between stored teacher rows and the rows the model computes now.

    Args:
        call: the layer's q, k and mask; gradients flow into q and k.
        index: which rows.
        teacher_PRL: teacher probabilities; keys beyond a sample's own length are zero.
        weight_PR: weight of each row; zero for rows that only fill the rectangle.
        eps: added to the student's probabilities inside the logarithm (official code: 1e-8); 0 is exact.

    Returns:
        A scalar with gradient, sum over rows of weight times KL(teacher, student).
    """
    return RowKL.apply(call.q_BHLD, call.k_BKLD, call, index, teacher_PRL, weight_PR, eps)

"""KL divergence between a teacher's attention rows and the model's own (paper eq. 5 and 12).

Forward and backward compute the student's rows again, tile by tile; no student probability is kept in between.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D head size,
P (sample, head) pairs, R query rows per pair.
"""

from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall
from seekr_cl.attention.kernels import routing, state
from seekr_cl.attention.rows import RowScores, add_to_mask_rows, student_scores
from seekr_cl.attention.targets import RowTarget
from seekr_cl.attention.teacher_rows import Comparison


def row_kl(call: AttentionCall, target: RowTarget, eps: float = 0.0) -> Tensor:
    """Sum over rows of weight times KL(teacher, student), a scalar with gradient.

    Gradients flow into the call's q, k, sinks and an additive mask that was computed from parameters. ``eps`` is added
    to the student's probabilities inside the logarithm (official code: 1e-8); 0 is exact.
    """
    learned = isinstance(call.mask, Tensor) and call.mask.requires_grad
    return RowKL.apply(call.q_BHLD, call.k_BKLD, call.sink_H, call.mask if learned else None, call, target, eps)


class RowKL(torch.autograd.Function):
    """sum_pr weight_pr KL(T_pr, p_pr).

    With scores s and p = softmax(s), the gradient of KL(T, p) with respect to s is p sum T - T.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHLD: Tensor, k_BKLD: Tensor, sink_H: Tensor | None, mask_BHQL: Tensor | None, *rest: Any
    ) -> Tensor:
        """Returns the weighted sum as a scalar of at least float32; ``rest`` is the call, the target and eps."""
        ctx.save_for_backward(q_BHLD, k_BKLD, *(() if sink_H is None else (sink_H,)))
        (call, target, eps), ctx.rest, ctx.state = rest, rest, None
        ctx.mask = None if mask_BHQL is None else (mask_BHQL.shape, mask_BHQL.dtype)
        if (q_BHLD.is_cuda or state.way == "kernels") and routing.usable(call, target, eps):
            from seekr_cl.attention.kernels import launch

            value, ctx.state = launch.forward(call, target)
            return value
        total = q_BHLD.new_zeros((), dtype=torch.promote_types(q_BHLD.dtype, torch.float32))
        for tile in target.index.tiles(*k_BKLD.shape[2:]):
            part = target.tile(tile)
            scores, lse_PR, comparison = _compare(call, part, eps)
            kl_PR = comparison.kl_PR
            if scores.sink_P is not None:
                T_PR = _sink_mass(comparison)
                kl_PR = kl_PR + torch.special.xlogy(T_PR, T_PR) - T_PR * (scores.sink_P[:, None] - lse_PR)
            total = total + (part.weight_PR * kl_PR).sum()
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for q, k, the sinks and a learned mask only; the teacher and the weights are data."""
        (scale,) = grads
        q_BHLD, k_BKLD, *sinks = ctx.saved_tensors
        call, target, eps = ctx.rest
        if ctx.state is not None:
            from seekr_cl.attention.kernels import launch

            return *launch.backward(call, target, ctx.state, scale), None, None, None, None
        # The model's q and k may be strided; the sums need plain memory.
        dq_BHLD, dk_BKLD = q_BHLD.new_zeros(q_BHLD.shape), k_BKLD.new_zeros(k_BKLD.shape)
        dsink_H = torch.zeros_like(sinks[0]) if sinks else None
        dmask_BHQL = None if ctx.mask is None else q_BHLD.new_zeros(ctx.mask[0], dtype=ctx.mask[1])
        heads, kv_heads, length = q_BHLD.shape[1], k_BKLD.shape[1], q_BHLD.shape[2]
        for tile in target.index.tiles(*k_BKLD.shape[2:]):
            part = target.tile(tile)
            index = part.index
            scores, lse_PR, comparison = _compare(call, part, eps)
            pull_PR = comparison.pull_PRL.sum(-1)
            weight_PR = scale * part.weight_PR
            if scores.sink_P is not None and dsink_H is not None:
                T_PR = _sink_mass(comparison)
                pull_PR = pull_PR + T_PR
                p_sink_PR = (scores.sink_P[:, None] - lse_PR).exp()
                dsink_P = (weight_PR * (p_sink_PR * pull_PR - T_PR)).sum(-1)
                dsink_H.scatter_add_(0, index.head_P, dsink_P.to(dsink_H.dtype))
            p_PRL = (scores.score_PRL - lse_PR[..., None]).exp_()
            ds_PRL = p_PRL.mul_(pull_PR[..., None]).sub_(comparison.pull_PRL).mul_(weight_PR[..., None])
            if dmask_BHQL is not None:
                add_to_mask_rows(dmask_BHQL, ds_PRL, index)
            ds_PRL = ds_PRL.mul_(call.scaling)
            if scores.slope_PRL is not None:
                ds_PRL = ds_PRL.mul_(scores.slope_PRL)
            row_PR = (index.sample_P * heads + index.head_P)[:, None] * length + index.query_PR
            _add_at(dq_BHLD.view(-1, q_BHLD.shape[3]), row_PR.flatten(), (ds_PRL @ scores.k_PLD).flatten(0, 1))
            kv_P = index.sample_P * kv_heads + index.head_P // call.group
            _add_at(dk_BKLD.view(k_BKLD.shape[0] * kv_heads, -1), kv_P, (ds_PRL.mT @ scores.q_PRD).flatten(1))
        return dq_BHLD, dk_BKLD, dsink_H, dmask_BHQL, None, None, None


def _compare(call: AttentionCall, part: RowTarget, eps: float) -> tuple[RowScores, Tensor, Comparison]:
    scores = student_scores(call, part.index)
    lse_PR = scores.log_normaliser()
    logp_PRL = scores.score_PRL - lse_PR[..., None]
    return scores, lse_PR, part.teacher.compare(logp_PRL, call, part.index, eps)


def _sink_mass(comparison: Comparison) -> Tensor:
    """What the teacher's sink took: all that its keys did not."""
    return (1 - comparison.mass_PR).clamp_min(0)


def _add_at(sum_NC: Tensor, index_M: Tensor, part_MC: Tensor) -> None:
    """Adds rows in place; ``index_put_`` would add in any order when threads share the work, and not repeat itself."""
    sum_NC.scatter_add_(0, index_M[:, None].expand_as(part_MC), part_MC.to(sum_NC.dtype))

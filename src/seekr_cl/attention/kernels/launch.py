"""Prepares the kernels' arguments and launches them.

Gradients repeat themselves bit by bit: no kernel adds with atomics, and block sizes follow a rule, not a stopwatch.

Memory beyond the gradients: five numbers a row, the rows' query gradients of one launch (``PART_BYTES``), and for a
top-k teacher one number and one index an entry.

Shapes: B batch, H query heads, K key/value heads (or kept entries of a teacher's row), L sequence length, D head size,
P (sample, head) pairs, R query rows per pair, G = B K groups, N sorted rows.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from seekr_cl.attention.call import AttentionCall
from seekr_cl.attention.kernels.backward import backward_keys, backward_queries, sum_queries
from seekr_cl.attention.kernels.blocks import choose
from seekr_cl.attention.kernels.forward import forward_rows
from seekr_cl.attention.stored.dense import DenseRows
from seekr_cl.attention.stored.factors import FactorRows
from seekr_cl.attention.stored.top_k import TopKRows
from seekr_cl.attention.targets import RowTarget

PART_BYTES = 1 << 27
"""Query gradients (float32) held by one launch before they are summed into the result."""
SORTED_ENTRIES = 1 << 23
"""Kept entries sorted at a time."""


@dataclass(frozen=True, slots=True)
class RowState:
    """What the forward pass leaves for the backward pass, in float32; scores are in units of log 2.

    Attributes:
        lse_PR: log-normalizer.
        pull_PR: what the gradient multiplies the student's probabilities with.
        aux_PR: the teacher's log-normalizer (factors), or tail over rest, negative where summed (top-k).
        sink_PR: gradient of the sink's score before weights, if the model has sinks.
    """

    lse_PR: Tensor
    pull_PR: Tensor
    aux_PR: Tensor | None
    sink_PR: Tensor | None


def forward(call: AttentionCall, target: RowTarget) -> tuple[Tensor, RowState]:
    """The weighted sum of ``row_kl``, float32 scalar, and what ``backward`` needs."""
    pairs, rows = target.index.query_PR.shape
    weight_PR = target.weight_PR.float().contiguous()
    arguments = _arguments(call, target)
    lse_PR, pull_PR, kl_PR = (torch.empty_like(weight_PR) for _ in range(3))
    aux_PR = None if isinstance(target.teacher, DenseRows) else torch.empty_like(weight_PR)
    sink_PR = None if call.sink_H is None else torch.empty_like(weight_PR)
    teacher_sink = target.teacher.sink_P if isinstance(target.teacher, FactorRows) else None
    blocks = choose("forward", arguments, call.q_BHLD)
    with _on(call.q_BHLD):
        forward_rows[(triton.cdiv(rows, blocks["BM"]), pairs)](
            **arguments,
            **blocks,
            sink=call.sink_H,
            weight=weight_PR,
            teacher_sink=teacher_sink,
            lse=lse_PR,
            pull=pull_PR,
            aux=aux_PR,
            sink_pull=sink_PR,
            kl=kl_PR,
            group=call.group,
            KP=triton.next_power_of_2(arguments["K"]),
            SINK=call.sink_H is not None,
            TEACHER_SINK=teacher_sink is not None,
        )
    if isinstance(target.teacher, TopKRows) and target.teacher.offset_PR is not None:
        kl_PR += target.teacher.offset_PR
    return (weight_PR * kl_PR).sum(), RowState(lse_PR, pull_PR, aux_PR, sink_PR)


def backward(
    call: AttentionCall, target: RowTarget, state: RowState, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients for q [B, H, L, D], k [B, K, L, D] and the sinks [H], in their own dtypes, times ``scale``."""
    arguments = _arguments(call, target)
    weight_PR = target.weight_PR.float().contiguous()
    # Weights as small as one over all rows would leave half precision's range inside the products.
    largest = weight_PR.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    shared = {
        "weight": weight_PR / largest,
        "unit": (largest * scale).float(),
        "lse": state.lse_PR,
        "pull": state.pull_PR,
        "aux": state.aux_PR,
        "delta": None,
    }
    if isinstance(target.teacher, TopKRows):
        shared["delta"] = torch.empty_like(target.teacher.prob_PRK, dtype=torch.float32).contiguous()
    with _on(call.q_BHLD):
        dq_BHLD = _query_gradient(call, target, arguments, shared)
        dk_BKLD = _key_gradient(call, target, arguments, shared)
    dsink_H = None
    if call.sink_H is not None and state.sink_PR is not None:
        part_PR = weight_PR * state.sink_PR * scale
        heads_H = torch.arange(len(call.sink_H), device=weight_PR.device)
        of_head_HP = heads_H[:, None] == target.index.head_P
        dsink_H = torch.where(of_head_HP, part_PR.sum(-1), 0.0).sum(-1).to(call.sink_H.dtype)
    return dq_BHLD, dk_BKLD, dsink_H


def _query_gradient(
    call: AttentionCall, target: RowTarget, arguments: dict[str, Any], shared: dict[str, Any]
) -> Tensor:
    batch, heads, length, size = call.q_BHLD.shape
    index, query_PR = target.index, target.index.query_PR
    pairs, rows = query_PR.shape
    dq_BHLD = call.q_BHLD.new_zeros(call.q_BHLD.shape)
    targets = batch * heads * length
    row_PR = (index.sample_P * heads + index.head_P)[:, None] * length + query_PR
    row_PR = torch.where(shared["weight"] != 0, row_PR, targets)
    blocks = choose("queries", arguments, call.q_BHLD)
    step = min(pairs, max(1, PART_BYTES // (4 * rows * size)))
    part_PRD = call.q_BHLD.new_empty((step, rows, size), dtype=torch.float32)
    for first in range(0, pairs, step):
        here = min(step, pairs - first)
        backward_queries[(triton.cdiv(rows, blocks["BM"]), here)](
            **arguments,
            **blocks,
            **shared,
            dq=part_PRD,
            first_pair=first,
            group=call.group,
            KP=triton.next_power_of_2(arguments["K"]),
        )
        row_N, source_N = row_PR[first : first + here].flatten().sort(stable=True)
        sizes = {"D": size, "DP": arguments["DP"], "BM": 16}
        sum_queries[(triton.cdiv(len(row_N), 16),)](dq_BHLD, row_N, source_N, part_PRD, len(row_N), targets, **sizes)
    return dq_BHLD


def _key_gradient(call: AttentionCall, target: RowTarget, arguments: dict[str, Any], shared: dict[str, Any]) -> Tensor:
    batch, kv_heads, length, _ = call.k_BKLD.shape
    index, groups = target.index, batch * kv_heads
    blocks = choose("keys", arguments, call.q_BHLD)
    starts_E = torch.arange(triton.cdiv(length, blocks["BN"]) + 1, device=call.k_BKLD.device) * blocks["BN"]
    group_P, order_P = (index.sample_P * kv_heads + index.head_P // call.group).sort(stable=True)
    pair_start = torch.searchsorted(group_P, torch.arange(groups + 1, device=group_P.device))
    kept_order, kept_start = None, None
    if isinstance(target.teacher, TopKRows):
        kept_order, kept_start = _sort_kept(target.teacher, starts_E)
    dk_BKLD = call.k_BKLD.new_empty(call.k_BKLD.shape)
    backward_keys[(len(starts_E) - 1, groups)](
        **arguments,
        **blocks,
        **shared,
        dk=dk_BKLD,
        pair_order=order_P.int(),
        pair_start=pair_start.int(),
        block_span=_block_span(index.query_PR, shared["weight"] != 0, starts_E, call, blocks["BM"]),
        kept_order=kept_order,
        kept_start=kept_start,
        kv_heads=kv_heads,
    )
    return dk_BKLD


def _block_span(query_PR: Tensor, used_PR: Tensor, starts_E: Tensor, call: AttentionCall, height: int) -> Tensor:
    """First and last block of rows (exclusive) that may see each block of keys: int32 [P, E - 1, 2].

    It is as tight as can be for ascending positions; in any order it leaves no row out.
    """
    pairs, rows = query_PR.shape
    count = triton.cdiv(rows, height)
    starts, ends = starts_E[:-1], starts_E[1:]
    span = torch.zeros((pairs, len(starts), 2), dtype=torch.int32, device=query_PR.device)
    span[..., 1] = count
    if call.mask is not None and call.mask.dim() == 4:
        return span
    pad = count * height - rows
    latest_PR = torch.nn.functional.pad(query_PR.masked_fill(~used_PR, -1), (0, pad), value=-1)
    latest_PN = latest_PR.view(pairs, count, height).amax(-1).cummax(-1).values
    span[..., 0] = torch.searchsorted(latest_PN, starts.expand(pairs, -1).contiguous())
    if call.window is not None:
        # Beyond any position, and exact as the float that ``pad`` makes of it.
        beyond = 1 << 30
        earliest_PR = torch.nn.functional.pad(query_PR.masked_fill(~used_PR, beyond), (0, pad), value=beyond)
        earliest_PN = earliest_PR.view(pairs, count, height).amin(-1).flip(-1).cummin(-1).values.flip(-1)
        reach = (ends - 1 + call.window).expand(pairs, -1).contiguous()
        span[..., 1] = torch.searchsorted(earliest_PN.contiguous(), reach)
    return span


def _sort_kept(teacher: TopKRows, starts_E: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair's kept entries in the order of their keys, and where each block of keys' begin: [P, R K], [P, E]."""
    key_PN = teacher.key_PRK.flatten(1)
    pairs, count = key_PN.shape
    order_PN = torch.empty((pairs, count), dtype=torch.int32, device=key_PN.device)
    start_PE = torch.empty((pairs, len(starts_E)), dtype=torch.int32, device=key_PN.device)
    step = max(1, SORTED_ENTRIES // count)
    for first in range(0, pairs, step):
        here = slice(first, first + step)
        sorted_PN, place_PN = key_PN[here].int().sort(dim=-1, stable=True)
        order_PN[here] = place_PN
        start_PE[here] = torch.searchsorted(sorted_PN, starts_E.int().expand(len(sorted_PN), -1).contiguous())
    return order_PN, start_PE


def _arguments(call: AttentionCall, target: RowTarget) -> dict[str, Any]:
    """What all kernels take."""
    q_BHLD, k_BKLD, index = _plain(call.q_BHLD), _plain(call.k_BKLD), target.index
    size = q_BHLD.shape[-1]
    return {
        **dict(zip(("q", "q_b", "q_h", "q_l"), (q_BHLD, *q_BHLD.stride()))),
        **dict(zip(("k", "k_b", "k_h", "k_l"), (k_BKLD, *k_BKLD.stride()))),
        **_mask(call),
        **_teacher(target),
        "sample": index.sample_P.contiguous(),
        "head": index.head_P.contiguous(),
        "query": index.query_PR.contiguous(),
        "rows": index.query_PR.shape[1],
        "length": k_BKLD.shape[2],
        "scaling": call.scaling,
        "D": size,
        "DP": max(16, triton.next_power_of_2(size)),
        "SOFTCAP": call.softcap or 0.0,
    }


def _mask(call: AttentionCall) -> dict[str, Any]:
    # Any mask is told of packed sequences itself.
    mask, segment = call.mask, call.segment_BL if call.mask is None else None
    found: dict[str, Any] = {"mask": None, "mask_b": 0, "mask_h": 0, "mask_q": 0, "mask_k": 0, "MASK": 0}
    if mask is not None and mask.dim() == 2:
        mask = mask.bool().view(torch.uint8)
        found |= {"mask": mask, "mask_b": mask.stride(0), "mask_k": mask.stride(1), "MASK": 1}
    elif mask is not None:
        kind = 2 if mask.dtype == torch.bool else 3
        strides = [0 if size == 1 else step for size, step in zip(mask.shape[:2], mask.stride())]
        mask = mask.view(torch.uint8) if kind == 2 else mask
        found |= {"mask": mask, "mask_b": strides[0], "mask_h": strides[1], "MASK": kind}
        found |= {"mask_q": mask.stride(2), "mask_k": mask.stride(3)}
    found |= {"segment": segment, "segment_b": 0, "segment_l": 0, "SEGMENT": segment is not None}
    if segment is not None:
        found |= {"segment_b": segment.stride(0), "segment_l": segment.stride(1)}
    # A 4-D mask has the window in it already.
    return found | {"WINDOW": call.window or 0 if found["MASK"] < 2 else 0}


def _teacher(target: RowTarget) -> dict[str, Any]:
    teacher = target.teacher
    found: dict[str, Any] = {"second": None, "second_g": 0, "second_l": 0, "third": None, "K": 1}
    if isinstance(teacher, TopKRows):
        found |= {"TEACHER": 1, "teacher": teacher.prob_PRK.contiguous(), "teacher_p": 0, "teacher_r": 0}
        found |= {"second": teacher.key_PRK.contiguous(), "third": teacher.tail_PR.contiguous()}
        return found | {"K": teacher.prob_PRK.shape[-1]}
    if isinstance(teacher, FactorRows):
        rows, keys = _plain(teacher.q_PRD), _plain(teacher.k_GLD)
        found |= {"second": keys, "second_g": keys.stride(0), "second_l": keys.stride(1)}
        found |= {"third": teacher.group_P.contiguous(), "TEACHER": 2}
    else:
        assert isinstance(teacher, DenseRows)
        rows = _plain(teacher.prob_PRL)
        found |= {"TEACHER": 0}
    return found | {"teacher": rows, "teacher_p": rows.stride(0), "teacher_r": rows.stride(1)}


def _plain(tensor: Tensor) -> Tensor:
    """The same with neighboring numbers in its last axis, as the kernels read them."""
    tensor = tensor.detach()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, not on its arguments'."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()

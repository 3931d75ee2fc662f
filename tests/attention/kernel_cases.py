"""Calls for the kernels, small enough for Triton's interpreter, and the two ways through ``row_kl`` for each.

``compare`` runs in a process of its own, where Triton was told to interpret before anything imported it.
"""

from dataclasses import replace

import torch

from seekr_cl.attention import AttentionCall, DenseRows, FactorRows, RowIndex, RowTarget, TopKRows, row_kl
from seekr_cl.attention.kernels import route

BATCH, LENGTH = 2, 37
CASES = {
    "plain": {},
    "grouped": {"heads": 4, "kv_heads": 2},
    "window": {"window": 9},
    "softcap": {"softcap": 1.5},
    "left padding": {"mask": "left"},
    "right padding and window": {"mask": "right", "window": 20, "heads": 4, "kv_heads": 2},
    "bool mask": {"mask": "bool"},
    "bool mask of each head": {"mask": "bool heads"},
    "added mask": {"mask": "added"},
    "added to each head": {"mask": "added heads", "softcap": 3.0},
    "segments": {"segments": True},
    "segments and window": {"segments": True, "window": 6},
    "sink": {"sink": True},
    "sink, softcap, grouped": {"sink": True, "softcap": 2.0, "heads": 4, "kv_heads": 2},
    "odd head size": {"size": 20},
    "one row": {"rows": 1, "heads": 4, "kv_heads": 1},
    "many rows": {"rows": 17, "window": 12},
    "sharp": {"sharpness": 6.0},
    "float16": {"dtype": torch.float16, "size": 20},
    "bfloat16": {"dtype": torch.bfloat16, "heads": 4, "kv_heads": 2},
}
TEACHERS = ("dense", "topk", "factors")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def make_mask(kind, heads):
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, 1, -1, -1).clone()
    seen[1, :, :, :7] = False
    if kind is None:
        return None
    if kind in ("left", "right"):
        real = torch.ones(BATCH, LENGTH, dtype=torch.long)
        real[1, slice(0, 5) if kind == "left" else slice(30, None)] = 0
        return real
    if kind == "bool":
        return seen
    if kind == "bool heads":
        return seen & (draw(BATCH, heads, LENGTH, LENGTH) > -1)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return added + draw(BATCH, heads, LENGTH, LENGTH) if kind == "added heads" else added


def make_call(case):
    heads, size, dtype = case.get("heads", 2), case.get("size", 8), case.get("dtype", torch.float32)
    # As models have them: heads next to each other, seen through a transposition.
    q = draw(BATCH, LENGTH, heads, size).mul(case.get("sharpness", 1.0)).to(dtype).transpose(1, 2)
    k = draw(BATCH, LENGTH, case.get("kv_heads", heads), size, seed=1).to(dtype).transpose(1, 2)
    sink = draw(heads, seed=2).to(dtype).requires_grad_() if case.get("sink") else None
    segment = torch.tensor([[0] * 10 + [1] * 20 + [2] * 7, [0] * 25 + [1] * 12]) if case.get("segments") else None
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    mask = make_mask(case.get("mask"), heads)
    return AttentionCall(0, q, k, k.detach(), mask, 0.5, case.get("softcap"), case.get("window"), sink, segment)


def make_index(case):
    """Pairs in no order, one twice; positions in no order, some twice; the surplus has no weight."""
    heads, rows = case.get("heads", 2), case.get("rows", 5)
    sample_P = torch.tensor([1, 0, 1, 0, 0])
    head_P = torch.tensor([heads - 1, 0, 0, heads - 1, 0])
    # Samples' padding comes first or last: every position in between sees something.
    query_PR = torch.randint(8, 30, (5, rows), generator=torch.Generator().manual_seed(rows))
    query_PR[1:4] = query_PR[1:4].sort(-1).values
    weight_PR = draw(5, rows, seed=5).abs() + 0.1
    if rows > 1:
        query_PR[0, -1], query_PR[1, -1] = 2, 36
        weight_PR[0, -1] = weight_PR[2, 0] = 0
    return RowIndex(sample_P, head_P, query_PR), weight_PR


def told_by_mask(call):
    """The same call for the reference, with its packed sequences and window in a 4-D mask."""
    if call.segment_BL is None:
        return call
    far = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    seen = (far >= 0) & (far < (call.window or LENGTH))
    same = call.segment_BL[:, None, :, None] == call.segment_BL[:, None, None, :]
    return replace(call, mask=same & seen, segment_BL=None, window=None)


def make_target(case, teacher, call):
    index, weight_PR = make_index(case)
    k = draw(*call.k_BKLD.shape, seed=7).mul(0.5).to(call.k_BKLD.dtype)
    q = draw(*call.q_BHLD.shape, seed=8).to(call.q_BHLD.dtype)
    q_PRD = q[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
    sink_P = None if call.sink_H is None else draw(call.q_BHLD.shape[1], seed=9)[index.head_P]
    group_P = index.sample_P * k.shape[1] + index.head_P // call.group
    factors = FactorRows(q_PRD, k.flatten(0, 1), group_P, sink_P)
    if teacher == "factors":
        return RowTarget(index, factors, weight_PR)
    ones = torch.zeros(len(index), index.query_PR.shape[1], LENGTH)
    prob_PRL = factor_rows(factors, told_by_mask(call), index, ones)
    if teacher == "dense":
        return RowTarget(index, DenseRows(prob_PRL.to(case.get("dtype", torch.float32))), weight_PR)
    prob_PRK, key_PRK = prob_PRL.topk(4, -1)
    tail_PR = prob_PRL.sum(-1) - prob_PRK.sum(-1)
    # A row that keeps three only: the fourth place repeats a kept key and its mass is the tail's.
    tail_PR[:, 0] += prob_PRK[:, 0, 3]
    prob_PRK[:, 0, 3], key_PRK[:, 0, 3] = 0, key_PRK[:, 0, 1]
    return RowTarget(index, TopKRows(prob_PRK.contiguous(), key_PRK.contiguous(), tail_PR.clamp_min(0)), weight_PR)


def factor_rows(factors, call, index, zeros_PRL):
    """The whole rows that factors stand for, as the pull of a comparison with anything."""
    return factors.compare(zeros_PRL, call, index, 0.0).pull_PRL


def run(call, target):
    """Value and gradients, in float32."""
    leaves = [leaf for leaf in (call.q_BHLD, call.k_BKLD, call.sink_H) if leaf is not None]
    value = row_kl(call, target)
    return [value.detach(), *(grad.float() for grad in torch.autograd.grad(3 * value, leaves))]


def compare(name, teacher):
    """The largest difference between kernels and tiles, relative to the largest number, for value and gradients."""
    case = CASES[name]
    call = make_call(case)
    target = make_target(case, teacher, call)
    expected = run(told_by_mask(call), target)
    with route("kernels"):
        found = run(call, target)
        again = run(call, target)
    assert all(map(torch.equal, found, again)), "two runs differ"
    assert all(part.isfinite().all() for part in found)
    return [float((mine - theirs).abs().max() / theirs.abs().max()) for mine, theirs in zip(found, expected)]

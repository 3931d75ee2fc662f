"""Calls for the kernels, small enough for Triton's interpreter, and the two ways through ``row_kl`` for each.

``compare`` runs in a process of its own, where Triton was told to interpret before anything imported it.
"""

import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest
import torch

from seekr_cl.attention import AttentionCall, DenseRows, FactorRows, RowIndex, RowTarget, TopKRows, row_kl
from seekr_cl.attention.kernels.routing import route

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
    "drawn tail": {"drawn": True, "sink": True},
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
    prob_PRL = factor_rows(factors, call, index, ones)
    if teacher == "dense":
        return RowTarget(index, DenseRows(prob_PRL.to(case.get("dtype", torch.float32))), weight_PR)
    prob_PRK, key_PRK = prob_PRL.topk(4, -1)
    tail_PR = prob_PRL.sum(-1) - prob_PRK.sum(-1)
    # A row that keeps three only: the fourth place repeats a kept key and its mass is the tail's.
    tail_PR[:, 0] += prob_PRK[:, 0, 3]
    prob_PRK[:, 0, 3], key_PRK[:, 0, 3] = 0, key_PRK[:, 0, 1]
    return RowTarget(index, TopKRows(prob_PRK.contiguous(), key_PRK.contiguous(), tail_PR.clamp_min(0)), weight_PR)


def widened(call):
    q, k, sink = (
        None if leaf is None else leaf.detach().float().requires_grad_()
        for leaf in (call.q_BHLD, call.k_BKLD, call.sink_H)
    )
    return replace(call, q_BHLD=q, k_BKLD=k, sink_H=sink)


def factor_rows(factors, call, index, zeros_PRL):
    """The whole rows that factors stand for, as the pull of a comparison with anything."""
    return factors.compare(zeros_PRL, call, index, 0.0).pull_PRL


def run(call, target):
    """Value and gradients, in float32."""
    leaves = [leaf for leaf in (call.q_BHLD, call.k_BKLD, call.sink_H) if leaf is not None]
    value = row_kl(call, target)
    return [value.detach(), *(grad.float() for grad in torch.autograd.grad(3 * value, leaves))]


def widen_dots():
    """The interpreter keeps bfloat16 as the integers of its bits and multiplies those: its products need them wide."""
    from triton.runtime.interpreter import InterpreterBuilder, tl

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (self.create_fp_to_fp(x, tl.float32, None) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain(self, a, b, *rest)

    InterpreterBuilder.create_dot = create_dot


def compare(name, teacher):
    """The largest difference between kernels and tiles, relative to the largest number, for value and gradients."""
    case = CASES[name]
    call = make_call(case)
    target = make_target(case, teacher, call)
    if case.get("drawn") and teacher == "topk":
        drawn = replace(target.teacher, tail_PR=torch.zeros(5, 5), offset_PR=draw(5, 5, seed=3))
        target = replace(target, teacher=drawn)
    # In full precision also where the inputs are not: the kernels owe their rounding to nobody.
    expected = run(widened(call), target)
    with route("kernels"):
        found = run(call, target)
    assert all(part.isfinite().all() for part in found)
    return [float((mine - theirs).abs().max() / theirs.abs().max()) for mine, theirs in zip(found, expected)]


def run_script(path, *options):
    """What a script prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", [path, *options])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
    assert stop.value.code == 0
    return printed.getvalue()


def check_rows_that_see_nothing():
    """They have no weight, and leave everything finite; so does a call in which nothing has a weight."""
    call = make_call({"mask": "bool"})
    call.mask[1, :, 20] = False
    for teacher in TEACHERS:
        target = make_target({}, teacher, call)
        target.index.query_PR[0, 0] = 20
        target.weight_PR[0, 0] = 0
        with route("kernels"):
            assert all(part.isfinite().all() for part in run(call, target))
            nothing = run(call, replace(target, weight_PR=torch.zeros_like(target.weight_PR)))
            assert all((part == 0).all() for part in nothing)


def check_equal_rows_have_no_divergence():
    """A teacher that is the student, by factors: not a small number but none."""
    call = make_call({"heads": 4, "kv_heads": 2})
    index, weight_PR = make_index({"heads": 4})
    q_PRD = call.q_BHLD.detach()[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
    group_P = index.sample_P * 2 + index.head_P // 2
    same = FactorRows(q_PRD, call.k_BKLD.detach().flatten(0, 1), group_P)
    with route("kernels"):
        value, *grads = run(call, RowTarget(index, same, weight_PR))
    assert abs(value) < 1e-6
    assert all(grad.abs().max() < 1e-6 for grad in grads)


def check_a_rest_that_cancels():
    """A student far surer of the kept keys than its teacher: 1 - kept has no digit left."""
    for sharpness in (6.0, 12.0):
        call = make_call({"sharpness": sharpness})
        index, weight_PR = make_index({})
        score_PRL = (
            call.q_BHLD[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
            @ call.k_BKLD[index.sample_P, index.head_P].mT
        ).detach()
        unseen = torch.arange(LENGTH) > index.query_PR[..., None]
        key_PRK = score_PRL.masked_fill(unseen, -torch.inf).topk(3, -1).indices
        prob_PRK = torch.tensor([0.4, 0.2, 0.1]).expand(key_PRK.shape).contiguous()
        target = RowTarget(index, TopKRows(prob_PRK, key_PRK, torch.full(weight_PR.shape, 0.3)), weight_PR)
        expected = run(call, target)
        with route("kernels"):
            found = run(call, target)
        for mine, theirs in zip(found, expected):
            assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def check_short_rows_have_no_rest():
    """Rows with fewer keys than are kept: the tail is rounding, and does not count."""
    call = make_call({})
    index, weight_PR = make_index({})
    index.query_PR[:, :2] = torch.tensor([0, 2])
    key_PRK = torch.arange(4).expand(5, 5, 4).clamp(max=index.query_PR[..., None]).contiguous()
    prob_PRK = torch.tensor([0.4, 0.3, 0.2, 0.1]).where(torch.arange(4) <= index.query_PR[..., None], 0.0)
    target = RowTarget(index, TopKRows(prob_PRK, key_PRK, torch.full(weight_PR.shape, 1e-3)), weight_PR)
    expected = run(call, target)
    with route("kernels"):
        found = run(call, target)
    for mine, theirs in zip(found, expected):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def check_blocks_that_see_nothing_are_left_out():
    """Ascending rows under a window: each block of keys meets the blocks of rows that see it, and no other."""
    from seekr_cl.attention.kernels.launch import _block_span

    call = make_call({"window": 9})
    query_PR = torch.arange(LENGTH).expand(1, -1)
    used_PR = torch.ones_like(query_PR, dtype=torch.bool)
    starts_E = torch.arange(4) * 16
    span = _block_span(query_PR, used_PR, starts_E, call, 8)
    assert span.tolist() == [[[0, 3], [2, 5], [4, 5]]]
    span = _block_span(query_PR, used_PR & (query_PR < 16), starts_E, replace(call, window=None), 8)
    assert span.tolist() == [[[0, 5], [5, 5], [5, 5]]]


CHECKS = (
    check_blocks_that_see_nothing_are_left_out,
    check_rows_that_see_nothing,
    check_equal_rows_have_no_divergence,
    check_a_rest_that_cancels,
    check_short_rows_have_no_rest,
)

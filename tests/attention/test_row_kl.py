"""row_kl by itself: gradcheck, value against the formula, masks of every kind."""

import pytest
import torch

from seekr_cl.attention import AttentionCall, DenseRows, RowIndex, RowTarget, attention_rows, row_kl
from seekr_cl.attention import call as call_module
from seekr_cl.errors import ModelError

BATCH, HEADS, GROUPS, LENGTH, SIZE = 2, 4, 2, 6, 3
CASES = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "window": {"window": 2},
    "eps": {"eps": 1e-2},
    "float mask": {"mask": "float"},
    "mask of each head": {"mask": "heads"},
    "bool mask": {"mask": "bool"},
    "real keys": {"mask": "keys"},
    "all at once": {"softcap": 2.0, "eps": 1e-3, "mask": "heads"},
    "window and real keys": {"mask": "keys", "window": 3},
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def make_mask(kind):
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, 1, -1, -1).clone()
    causal[1, :, :, 0] = False
    causal[1, :, 0, 0] = True
    lowest = torch.finfo(torch.float64).min
    if kind is None:
        return None
    if kind == "keys":
        return torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]])
    if kind == "bool":
        return causal
    mask = torch.zeros(causal.shape, dtype=torch.float64).masked_fill(~causal, lowest)
    return mask + draw(BATCH, HEADS, LENGTH, LENGTH) if kind == "heads" else mask


def explicit(call, index, case):
    """Probabilities from whole score matrices."""
    k = call.k_BKLD.repeat_interleave(HEADS // GROUPS, 1)
    scores = call.q_BHLD @ k.mT * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if call.window is not None:
        seen &= ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-call.window)
    kind = case.get("mask")
    if kind in (None, "keys"):
        both = seen if kind is None else seen & call.mask.bool()[:, None, None]
        scores = scores.masked_fill(~both, -torch.inf)
    elif kind == "bool":
        scores = scores.masked_fill(~call.mask, -torch.inf)
    else:
        scores = (scores + call.mask).clamp(min=torch.finfo(torch.float64).min)
    return scores.softmax(-1)[index.sample_P[:, None], index.head_P[:, None], index.query_PR]


def make(case):
    sample_P, head_P = torch.tensor([0, 1, 1, 0]), torch.tensor([3, 0, 2, 2])
    index = RowIndex(sample_P, head_P, torch.tensor([[1, 5, 5], [2, 4, 0], [3, 3, 5], [0, 1, 2]]))
    q = draw(BATCH, HEADS, LENGTH, SIZE).requires_grad_()
    k = draw(BATCH, GROUPS, LENGTH, SIZE).requires_grad_()
    call = AttentionCall(0, q, k, k.detach(), make_mask(case.get("mask")), 0.7, case.get("softcap"), case.get("window"))
    teacher_PRL = (2 * draw(4, 3, LENGTH, seed=3)).softmax(-1) * (explicit(call, index, case).detach() > 0)
    # Rows that do not sum to one, as rows cut short or stored in half precision.
    teacher_PRL[0, 0] *= 0.6
    return call, index, teacher_PRL, torch.tensor([[1.0, 0.5, 2.0], [0.3, 0, 0.7], [1, 1, 1], [0.1, 0.2, 0.3]]).double()


def dense(index, teacher_PRL, weight_PR):
    return RowTarget(index, DenseRows(teacher_PRL), weight_PR)


def at(call, q, k):
    return AttentionCall(0, q, k, call.v_BKLD, call.mask, call.scaling, call.softcap, call.window)


@each_case
@pytest.mark.parametrize("elements", [7, 1 << 22], ids=["tiles", "whole"])
def test_gradcheck(monkeypatch, case, elements):
    monkeypatch.setattr(call_module, "TILE_ELEMENTS", elements)
    call, index, teacher, weight = make(case)

    def loss(q, k):
        return row_kl(at(call, q, k), dense(index, teacher, weight), case.get("eps", 0.0))

    assert torch.autograd.gradcheck(loss, (call.q_BHLD, call.k_BKLD))


@each_case
def test_value_and_rows(case):
    call, index, teacher, weight = make(case)
    p = explicit(call, index, case)
    torch.testing.assert_close(attention_rows(call, index), p.detach(), rtol=0, atol=1e-12)
    logs = torch.log(torch.where(teacher > 0, p, 1.0) + case.get("eps", 0.0))
    expected = (weight * (torch.special.xlogy(teacher, teacher) - teacher * logs).sum(-1)).sum()
    found = row_kl(call, dense(index, teacher, weight), case.get("eps", 0.0))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(found, (call.q_BHLD, call.k_BKLD)),
        torch.autograd.grad(expected, (call.q_BHLD, call.k_BKLD)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_row_that_sees_nothing_stays_finite():
    call, index, teacher, weight = make({"mask": "bool"})
    call.mask[1, :, 2] = False
    weight[1, 0] = 0
    value = row_kl(call, dense(index, teacher, weight))
    grads = torch.autograd.grad(value, (call.q_BHLD, call.k_BKLD))
    assert all(tensor.isfinite().all() for tensor in (value, *grads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    call, index, teacher, weight = make({})
    teacher, weight = teacher.float(), weight.float()
    q, k = (t.detach().to(dtype).requires_grad_() for t in (call.q_BHLD, call.k_BKLD))
    wide = at(call, *(t.detach().float().requires_grad_() for t in (q, k)))
    low, high = row_kl(at(call, q, k), dense(index, teacher, weight)), row_kl(wide, dense(index, teacher, weight))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=1e-6, atol=0)
    grads = torch.autograd.grad(low, (q, k))
    assert all(grad.dtype == dtype for grad in grads)
    for mine, theirs in zip(grads, torch.autograd.grad(high, (wide.q_BHLD, wide.k_BKLD))):
        torch.testing.assert_close(mine.float(), theirs, rtol=3e-2, atol=1e-2)


def test_autocast_does_not_lower_the_precision():
    call, index, teacher, weight = make({})
    teacher, weight = teacher.float(), weight.float()
    wide = at(call, call.q_BHLD.detach().float(), call.k_BKLD.detach().float())
    plain = row_kl(wide, dense(index, teacher, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(row_kl(wide, dense(index, teacher, weight)), plain)


def test_unreadable_mask_is_refused():
    call, index, _, _ = make({})
    with pytest.raises(ModelError, match="str"):
        attention_rows(AttentionCall(0, call.q_BHLD, call.k_BKLD, call.v_BKLD, "blocks", 1.0), index)

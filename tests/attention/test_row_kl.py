"""row_kl by itself: gradcheck, value against the formula, masks of every kind, teachers of every form."""

from dataclasses import replace

import pytest
import torch
from row_cases import by_hand, dense, each_case, each_form, explicit, inputs, make, teach, with_inputs

from seekr_cl.attention import RowTarget, attention_rows, row_kl
from seekr_cl.attention import call as call_module
from seekr_cl.errors import ModelError

each_tile = pytest.mark.parametrize("elements", [7, 1 << 22], ids=["tiles", "whole"])


@each_case
@each_form
@each_tile
def test_gradcheck(monkeypatch, case, form, elements):
    """Against differences along random directions; entry by entry they are compared with the formula's below."""
    monkeypatch.setattr(call_module, "TILE_ELEMENTS", elements)
    call, index, teacher, weight = make(case)
    rows, _ = teach(form, call, index, case, teacher)

    def loss(*tensors):
        return row_kl(with_inputs(call, *tensors), RowTarget(index, rows, weight), case.get("eps", 0.0))

    assert torch.autograd.gradcheck(loss, inputs(call), fast_mode=True)


@each_case
def test_recorded_rows(case):
    call, index, _, _ = make(case)
    p = explicit(call, index, case)
    torch.testing.assert_close(attention_rows(call, index), p.detach(), rtol=0, atol=1e-12)


@each_case
@each_form
@each_tile
def test_value_and_gradient(monkeypatch, case, form, elements):
    monkeypatch.setattr(call_module, "TILE_ELEMENTS", elements)
    call, index, teacher, weight = make(case)
    rows, bucketed = teach(form, call, index, case, teacher)
    expected = by_hand(call, index, case, bucketed, weight)
    found = row_kl(call, RowTarget(index, rows, weight), case.get("eps", 0.0))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(found, inputs(call)), torch.autograd.grad(expected, inputs(call))):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sinks", [False, True])
def test_own_rows_pull_nowhere(sinks):
    case = {"sinks": sinks}
    call, index, _, weight = make(case)
    value = row_kl(call, dense(index, explicit(call, index, case).detach(), weight))
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(float(grad.abs().max()) < 1e-12 for grad in torch.autograd.grad(value, inputs(call)))


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
    wide = with_inputs(call, *(t.detach().float().requires_grad_() for t in (q, k)))
    low, high = (
        row_kl(with_inputs(call, q, k), dense(index, teacher, weight)),
        row_kl(wide, dense(index, teacher, weight)),
    )
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=1e-6, atol=0)
    grads = torch.autograd.grad(low, (q, k))
    assert all(grad.dtype == dtype for grad in grads)
    for mine, theirs in zip(grads, torch.autograd.grad(high, (wide.q_BHLD, wide.k_BKLD))):
        torch.testing.assert_close(mine.float(), theirs, rtol=3e-2, atol=1e-2)


def test_autocast_does_not_lower_the_precision():
    call, index, teacher, weight = make({})
    teacher, weight = teacher.float(), weight.float()
    wide = with_inputs(call, call.q_BHLD.detach().float(), call.k_BKLD.detach().float())
    plain = row_kl(wide, dense(index, teacher, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(row_kl(wide, dense(index, teacher, weight)), plain)


def test_unreadable_mask_is_refused():
    call, index, _, _ = make({})
    with pytest.raises(ModelError, match="str"):
        attention_rows(replace(call, mask="blocks"), index)

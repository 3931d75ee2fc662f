"""torch.compile: a tap without an action costs nothing, and an action gives the same numbers as uncompiled."""

import pytest
import torch
from row_cases import in_layers
from test_distil_gradients import FACTOR, compare, targets
from tiny_models import TABLE, build, make_batch, run
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from seekr_cl.attention import AttentionTap, DistillRows, MeasureSensitivity
from seekr_cl.methods.losses import causal_lm_loss


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def step(model, batch, tap, wanted=None) -> float:
    """One step's loss; its gradients stay in the model."""
    model.zero_grad()
    tap.action = action = None if wanted is None else DistillRows(in_layers(wanted))
    loss = causal_lm_loss(run(model, batch).logits, batch["labels"])
    if action is not None:
        loss = loss + sum(FACTOR[layer] * value for layer, value in action.losses().items())
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize("distilling", [False, True], ids=["plain", "distilling"])
@pytest.mark.parametrize(
    ("name", "implementation", "padding"),
    [("llama-gqa", "sdpa", "none"), ("llama-gqa", "sdpa", "left"), ("llama-gqa", "eager", "left")],
)
def test_same_loss_and_gradients(name, implementation, padding, distilling):
    batch = make_batch(padding)
    wanted = targets(batch, TABLE[name].windows, torch.float32) if distilling else None
    plain, compiled = build(name, implementation), build(name, implementation)
    with AttentionTap(plain) as tap:
        expected = step(plain, batch, tap, wanted)
    with AttentionTap(compiled) as tap:
        compiled.compile(backend="aot_eager")
        found = step(compiled, batch, tap, wanted)
    assert found == pytest.approx(expected, rel=1e-6)
    compare(compiled, {key: parameter.grad for key, parameter in plain.named_parameters()}, 1e-6)


def test_no_break_and_no_recompilation_without_an_action():
    batch, model, counter = make_batch("left"), build("llama-gqa", "sdpa"), CompileCounter()
    untapped, untapped_counter = build("llama-gqa", "sdpa"), CompileCounter()
    untapped.compile(backend=untapped_counter, fullgraph=True)
    causal_lm_loss(run(untapped, batch).logits, batch["labels"]).backward()
    with AttentionTap(model) as tap:
        model.compile(backend=counter, fullgraph=True)
        for _ in range(3):
            step(model, batch, tap)
    assert counter.frame_count == untapped_counter.frame_count == 1
    # Not one operation more than without a tap.
    assert counter.op_count == untapped_counter.op_count


def test_a_new_action_each_step_compiles_nothing_new():
    batch, model, counter = make_batch("left"), build("llama-gqa", "sdpa"), CompileCounter()
    wanted = targets(batch, TABLE["llama-gqa"].windows, torch.float32)
    with AttentionTap(model) as tap:
        model.compile(backend=counter)
        frames = []
        for kind in (None, wanted, None, wanted, None, wanted):
            step(model, batch, tap, kind)
            frames.append(counter.frame_count)
        tap.action = MeasureSensitivity(batch["attention_mask"].bool())
        run(model, batch).logits.sum().backward()
        assert len(tap.action.squared) == 3
    assert frames[0] == 1
    # The plain graph is traced once more after the first action, then there are two forms and nothing is traced again.
    assert frames[1] < frames[2] <= frames[1] + 1
    assert frames[2:] == [frames[2]] * 4

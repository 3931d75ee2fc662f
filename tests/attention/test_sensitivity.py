"""||dL/dA||^2 in closed form equals autograd on the attention probabilities of the eager implementation."""

import pytest
import torch
from tiny_models import (
    TABLE,
    WINDOW,
    build,
    checkpoint_layers,
    each_padding,
    each_setup,
    make_batch,
    run,
    twin_of,
    valid,
)

from seekr_cl.attention import AttentionTap, MeasureSensitivity
from seekr_cl.attention.sensitivity import count_valid, squared_norm_all, squared_norm_valid
from seekr_cl.methods.losses import causal_lm_loss


def summed_loss(logits, labels):
    """The sum of the samples' own mean losses, so that a batch gives each sample its own gradient."""
    return torch.stack([causal_lm_loss(one[None], label[None]) for one, label in zip(logits, labels)]).sum()


def map_gradients(twin, batch):
    output = run(twin, batch, output_attentions=True)
    return torch.autograd.grad(summed_loss(output.logits, batch["labels"]), output.attentions)


def measure(model, batch, real_BL):
    with AttentionTap(model) as tap:
        tap.action = action = MeasureSensitivity(real_BL)
        summed_loss(run(model, batch).logits, batch["labels"]).backward()
    return action


def check(action, gradients, entries):
    for layer, gradient in enumerate(gradients):
        seen_BLL = entries[layer]
        expected = (gradient.square() * seen_BLL[:, None]).sum((-1, -2))
        torch.testing.assert_close(action.squared[layer], expected, rtol=1e-10, atol=0)
        assert action.entries[layer].tolist() == seen_BLL.sum((1, 2)).tolist()


@each_setup
@each_padding
def test_valid_entries(exact_softmax, name, implementation, padding):
    model, batch = build(name, implementation, torch.float64), make_batch(padding)
    gradients = map_gradients(twin_of(model, name), batch)
    action = measure(model, batch, batch["attention_mask"].bool())
    check(action, gradients, [valid(batch["attention_mask"], window) for window in TABLE[name].windows])


@each_setup
def test_all_entries(exact_softmax, name, implementation):
    model, batch = build(name, implementation, torch.float64), make_batch("none")
    action = measure(model, batch, None)
    everything = torch.ones(3, *[batch["input_ids"].shape[1]] * 2, dtype=torch.bool)
    check(action, map_gradients(twin_of(model, name), batch), [everything] * 3)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_all_entries_with_padding_on_eager(exact_softmax, padding):
    """Padding queries differ between implementations, so this holds where both sides are eager."""
    model, batch = build("llama-gqa", "eager", torch.float64), make_batch(padding)
    everything = torch.ones(3, *[batch["input_ids"].shape[1]] * 2, dtype=torch.bool)
    check(measure(model, batch, None), map_gradients(twin_of(model, "llama-gqa"), batch), [everything] * 3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_checkpointing(exact_softmax, reentrant):
    model, batch = build("llama-gqa", "sdpa", torch.float64), make_batch("left")
    gradients = map_gradients(twin_of(model, "llama-gqa"), batch)
    checkpoint_layers(model, reentrant)
    action = measure(model.train(), batch, batch["attention_mask"].bool())
    check(action, gradients, [valid(batch["attention_mask"], None)] * 3)


@pytest.mark.parametrize("window", [None, 1, 2, WINDOW, 40])
@pytest.mark.parametrize("chunk", [1, 3, 128])
def test_chunks_and_windows(window, chunk):
    generator = torch.Generator().manual_seed(1)
    dO = torch.randn(2, 13, 6, 5, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 3, 13, 5, generator=generator, dtype=torch.float64)
    real = torch.ones(2, 13, dtype=torch.bool)
    real[0, :4] = False
    gradient = torch.einsum("bqhd,bhkd->bhqk", dO, v.repeat_interleave(2, 1))
    seen = valid(real, window)
    expected = (gradient.square() * seen[:, None]).sum((-1, -2))
    torch.testing.assert_close(squared_norm_valid(dO, v, real, window, chunk), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squared_norm_all(dO, v), gradient.square().sum((-1, -2)), rtol=1e-12, atol=0)
    assert count_valid(real, window).tolist() == seen.sum((1, 2)).tolist()

"""The gradient that DistillRows injects equals autograd through eager attention maps."""

import pytest
import torch
from row_cases import in_layers
from tiny_models import TABLE, build, checkpoint_layers, each_padding, each_setup, make_batch, run, twin_of, valid

from seekr_cl.attention import AttentionTap, DenseRows, DistillRows, RowIndex, RowTarget
from seekr_cl.methods.losses import causal_lm_loss

FACTOR = {0: 3.0, 2: 0.5}
"""Different factors of the layers in the loss; layer 1 is left alone."""
EPS = 1e-8
checkpointing = pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "non-reentrant", "reentrant"])


def targets(batch, windows, dtype=torch.float64) -> dict[int, list[RowTarget]]:
    """Random teachers: other heads for every sample and layer, some queries twice, one row of no weight."""
    generator = torch.Generator().manual_seed(9)
    pairs = {0: [(0, 0), (0, 3), (1, 1), (2, 2), (2, 3)], 2: [(1, 0), (1, 1), (0, 2)]}
    real, made = batch["attention_mask"].bool(), {}
    for layer, places in pairs.items():
        sample_P, head_P = torch.tensor(places).T
        query_PR = torch.stack([torch.where(real[s])[0][[0, -1, -1, 2, 3]] for s in sample_P])
        seen_PRL = valid(real, windows[layer])[sample_P[:, None], query_PR]
        logits = 2 * torch.randn(seen_PRL.shape, generator=generator, dtype=torch.float64)
        teacher_PRL = logits.masked_fill(~seen_PRL, -torch.inf).softmax(-1)
        weight_PR = torch.rand(query_PR.shape, generator=generator, dtype=torch.float64)
        weight_PR[:, -1] = 0
        index, teacher = RowIndex(sample_P, head_P, query_PR), DenseRows(teacher_PRL.to(dtype))
        made[layer] = [RowTarget(index, teacher, weight_PR.to(dtype))]
    return made


def reference(twin, batch, wanted, eps) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """Losses and gradients with the maps in the graph."""
    output = run(twin, batch, output_attentions=True)
    loss, values = causal_lm_loss(output.logits, batch["labels"]), {}
    for layer, (target,) in wanted.items():
        index = target.index
        row_PRL = output.attentions[layer][index.sample_P[:, None], index.head_P[:, None], index.query_PR]
        T = target.teacher.prob_PRL
        taught = T > 0
        logs = torch.log(torch.where(taught, row_PRL, 1.0) + eps)
        values[layer] = (target.weight_PR * (torch.special.xlogy(T, T) - T * logs).sum(-1)).sum()
        loss = loss + FACTOR[layer] * values[layer]
    loss.backward()
    grads = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    return {layer: float(value.detach()) for layer, value in values.items()}, grads


def distilled(model, batch, wanted, eps, scale=1.0) -> dict[int, float]:
    """The same through the tap; leaves the gradients in the model."""
    with AttentionTap(model) as tap:
        tap.action = action = DistillRows(in_layers(wanted), eps)
        logits = run(model, batch).logits
        losses = action.losses()
        loss = causal_lm_loss(logits, batch["labels"]) + sum(FACTOR[layer] * x for layer, x in losses.items())
        (loss * scale).backward()
    return {layer: float(value.detach()) for layer, value in losses.items()}


def checkpoint(model, reentrant):
    if reentrant is None:
        return
    checkpoint_layers(model, reentrant)
    model.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def compare(model, expected, tolerance, scale=1.0):
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    # Biases of keys shift all scores of a row alike: their gradient is zero but for rounding.
    largest = max(float(grad.abs().max()) for grad in expected.values() if grad is not None)
    for name, grad in expected.items():
        if grad is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name] / scale, grad, rtol=0, atol=tolerance * largest, msg=name)


@each_setup
@each_padding
@checkpointing
def test_gradient_in_double_precision(exact_softmax, name, implementation, padding, reentrant):
    model, batch = build(name, implementation, torch.float64), make_batch(padding)
    wanted = targets(batch, TABLE[name].windows)
    values, expected = reference(twin_of(model, name), batch, wanted, 0.0)
    checkpoint(model, reentrant)
    found = distilled(model, batch, wanted, 0.0)
    assert found == pytest.approx(values, rel=1e-7)
    compare(model, expected, 1e-7)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2"])
@checkpointing
def test_official_eps_and_loss_scale(exact_softmax, name, reentrant):
    model, batch = build(name, "sdpa" if TABLE[name].sdpa else "eager", torch.float64), make_batch("left")
    wanted = targets(batch, TABLE[name].windows)
    values, expected = reference(twin_of(model, name), batch, wanted, EPS)
    checkpoint(model, reentrant)
    assert distilled(model, batch, wanted, EPS, scale=7.0) == pytest.approx(values, rel=1e-7)
    compare(model, expected, 1e-7, scale=7.0)


@each_setup
@each_padding
def test_gradient_in_single_precision(name, implementation, padding):
    model, batch = build(name, implementation), make_batch(padding)
    wanted = targets(batch, TABLE[name].windows, torch.float32)
    values, expected = reference(twin_of(model, name), batch, wanted, 0.0)
    assert distilled(model, batch, wanted, 0.0) == pytest.approx(values, rel=1e-5)
    compare(model, expected, 1e-5)


@checkpointing
def test_gradient_with_lora(exact_softmax, reentrant):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    batch, models = make_batch("left"), []
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(3)
        model = peft.get_peft_model(build("llama-gqa", implementation, torch.float64), lora)
        generator = torch.Generator().manual_seed(4)
        for parameter in model.parameters():
            if parameter.requires_grad:
                draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = 0.2 * draw
        models.append(model)
    wanted = targets(batch, TABLE["llama-gqa"].windows)
    values, expected = reference(models[1], batch, wanted, 0.0)
    assert 0 < len(expected) < len(list(models[1].parameters()))
    if reentrant is not None:
        models[0].enable_input_require_grads()
        checkpoint(models[0].get_base_model(), reentrant)
        models[0].train()
    assert distilled(models[0], batch, wanted, 0.0) == pytest.approx(values, rel=1e-7)
    compare(models[0], expected, 1e-7)


def test_own_rows_give_no_loss_and_no_gradient():
    model, batch = build("llama-gqa", "sdpa", torch.float64), make_batch("none")
    index = RowIndex(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([[3, 10], [0, 5]]))
    with torch.no_grad():
        maps = run(twin_of(model, "llama-gqa"), batch, output_attentions=True).attentions[0]
    teacher = maps[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
    with AttentionTap(model) as tap:
        target = RowTarget(index, DenseRows(teacher), torch.ones(2, 2, dtype=torch.float64))
        tap.action = action = DistillRows(in_layers({0: [target]}))
        run(model, batch)
        assert float(action.losses()[0].detach()) == pytest.approx(0, abs=1e-6)

"""AttentionTap leaves transformers as it found it and every other model alone."""

import copy

import pytest
import torch
from tiny_models import TABLE, build, make_batch, run
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from seekr_cl.attention import AttentionTap
from seekr_cl.attention import tap as tap_module
from seekr_cl.errors import ModelError

NAMES = [name for name, row in TABLE.items() if row.sdpa][:3]


def functions():
    return dict(AttentionInterface._global_mapping)


def marked(model):
    """Layers that still carry something of a tap's."""
    return [module for module in model.modules() if tap_module._SLOT in vars(module)]


def spoil(call, output):
    return output + 1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_functions_are_restored(implementation):
    model, before = build("llama-gqa", implementation), functions()
    with AttentionTap(model):
        assert functions() != before
        assert marked(model)
    assert functions() == before
    assert not tap_module._installed
    assert not marked(model)


def test_closing_twice_is_harmless():
    before = functions()
    first, other = AttentionTap(build("llama-gqa", "sdpa")), AttentionTap(build("qwen3", "sdpa"))
    first.close()
    first.close()
    assert functions() != before
    other.close()
    assert functions() == before


def test_restored_after_an_error_inside():
    before = functions()
    with pytest.raises(RuntimeError, match="inside"), AttentionTap(build("llama-gqa", "sdpa")):
        raise RuntimeError("inside")
    assert functions() == before


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_two_taps_at_once(implementation):
    batch, before = make_batch("left"), functions()
    first, second = build("llama-gqa", implementation), build("qwen3", implementation)
    clean = [run(model, batch).logits for model in (first, second)]
    seen = {"first": [], "second": []}

    def looker(name):
        return lambda call, output: seen[name].append(call.layer) or output

    one, two = AttentionTap(first), AttentionTap(second)
    with one.use(looker("first")), two.use(looker("second")):
        run(first, batch)
        assert seen == {"first": [0, 1, 2], "second": []}
        run(second, batch)
        assert seen == {"first": [0, 1, 2], "second": [0, 1, 2]}
    one.close()
    with two.use(spoil):
        assert torch.equal(run(first, batch).logits, clean[0])
        assert not torch.allclose(run(second, batch).logits, clean[1])
    two.close()
    assert functions() == before
    assert torch.equal(run(second, batch).logits, clean[1])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_untapped_model_is_unaffected(implementation):
    batch, tapped = make_batch("left"), build("llama-gqa", implementation)
    others = [build("llama-gqa", implementation), build("gpt2", implementation), build("gemma2", "eager")]
    clean = [run(model, batch).logits for model in others]
    with AttentionTap(tapped) as tap, tap.use(spoil):
        assert not torch.allclose(run(tapped, batch).logits, clean[0])
        for model, logits in zip(others, clean):
            assert torch.equal(run(model, batch).logits, logits)


def test_use_puts_the_former_action_back():
    with AttentionTap(build("llama-gqa", "sdpa")) as tap:
        assert tap.action is None
        with tap.use(spoil):
            with tap.use(None):
                assert tap.action is None
            assert tap.action is spoil
        assert tap.action is None


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_stay(training):
    model = build("llama-gqa", "sdpa").train(training)
    with AttentionTap(model) as tap:
        assert model.training == training
        assert tap.heads == {0: 4, 1: 4, 2: 4}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_output_attentions_still_work():
    model, batch = build("llama-gqa", "eager"), make_batch("left")
    expected = run(model, batch, output_attentions=True).attentions
    with AttentionTap(model):
        found = run(model, batch, output_attentions=True).attentions
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected))


@pytest.mark.parametrize("kind", ["falcon", "bloom"])
def test_models_outside_the_interface_are_refused(kind):
    config = AutoConfig.for_model(
        kind, vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, n_layer=2, n_head=4
    )
    model, before = AutoModelForCausalLM.from_config(config), functions()
    with pytest.raises(ModelError, match=kind):
        AttentionTap(model)
    assert functions() == before
    assert not marked(model)


def test_a_model_whose_attention_was_replaced_is_refused(monkeypatch):
    def forward(self, hidden_states, *args, **kwargs):
        return self.o_proj(self.q_proj(hidden_states)), None

    model = build("llama-gqa", "sdpa")
    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", forward)
    with pytest.raises(ModelError, match="its attention was replaced"):
        AttentionTap(model)
    assert not marked(model)


def test_a_copy_of_a_tapped_model_is_not_tapped():
    model, batch = build("llama-gqa", "sdpa"), make_batch("left")
    clean = run(model, batch).logits
    with AttentionTap(model) as tap, tap.use(spoil):
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin, batch).logits, clean)
        assert not torch.allclose(run(model, batch).logits, clean)
    assert torch.equal(run(twin, batch).logits, clean)

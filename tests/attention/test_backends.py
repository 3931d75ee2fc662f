"""Packed sequences and masks as each implementation gets them; flash and flex attention."""

import pytest
import torch
from row_cases import in_layers
from tiny_models import LENGTH, VOCAB, build, make_batch, run, twin_of
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface

from seekr_cl.attention import (
    AttentionCall,
    AttentionTap,
    DenseRows,
    DistillRows,
    MeasureSensitivity,
    RecordRows,
    RowIndex,
    RowTarget,
)
from seekr_cl.attention.rows import add_bias, mask_scores
from seekr_cl.attention.tap import read_call
from seekr_cl.errors import ModelError

LENGTHS = (4, 5, 2)
STARTS = (0, 4, 9)
LAYERS, HEADS = 3, 4


def all_rows(length=LENGTH, samples=1):
    """Every row of every head of every layer."""
    sample_P = torch.arange(samples).repeat_interleave(HEADS)
    index = RowIndex(sample_P, torch.arange(HEADS).repeat(samples), torch.arange(length).expand(len(sample_P), -1))
    return dict.fromkeys(range(LAYERS), index)


def packed():
    """Three sequences in one row, and the positions that say so."""
    ids = torch.randint(3, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    return ids, torch.cat([torch.arange(n) for n in LENGTHS])[None]


def stand_in_flash(module, query, key, value, attention_mask, scaling, position_ids=None, **kwargs):
    """What flash attention computes: position ids separate the sequences of one row; a 2-D mask drops keys."""
    assert attention_mask is None or attention_mask.dim() == 2
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).mT * scaling
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if (window := kwargs.get("sliding_window")) is not None:
        seen = seen & ~torch.ones_like(seen).tril(-window)
    seen = seen[None]
    if attention_mask is not None:
        seen = seen & attention_mask.bool()[:, None]
    elif len(query) == 1:
        ends = kwargs.get("cu_seq_lens_q")
        number = (
            (position_ids == 0).cumsum(-1) if ends is None else (torch.arange(LENGTH) >= ends[:, None]).sum(0)[None]
        )
        seen = seen & (number[:, :, None] == number[:, None])
    weights = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min).softmax(-1)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), None


@pytest.fixture
def flash(monkeypatch):
    """A model on "flash_attention_2" whose kernel is the stand-in."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", stand_in_flash)

    def make(name, dtype=torch.float64):
        model = build(name, "sdpa", dtype)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "flash_attention_2"
        assert model.config._attn_implementation == "flash_attention_2"
        return model

    return make


def record(model, wanted, **inputs):
    with AttentionTap(model) as tap, torch.no_grad():
        action = RecordRows(wanted)
        with tap.use(action):
            model(**inputs, use_cache=False)
    return action.rows


def blocks(model, ids):
    """The rows of each sequence alone, laid out as in the packed row: {layer: [H, L, L]}."""
    laid = {layer: torch.zeros(HEADS, LENGTH, LENGTH, dtype=torch.float64) for layer in range(LAYERS)}
    for start, length in zip(STARTS, LENGTHS):
        part = slice(start, start + length)
        for layer, rows in record(model, all_rows(length), input_ids=ids[:, part]).items():
            laid[layer][:, part, part] = rows
    return laid


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "mistral-window"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash"])
def test_packed_rows_are_those_of_each_sequence_alone(exact_softmax, flash, name, implementation):
    ids, position_ids = packed()
    model = flash(name) if implementation == "flash" else build(name, implementation, torch.float64)
    expected = blocks(build(name, "sdpa", torch.float64), ids)
    found = record(model, all_rows(), input_ids=ids, position_ids=position_ids)
    for layer in range(LAYERS):
        torch.testing.assert_close(found[layer], expected[layer], rtol=0, atol=1e-9)


def taught(index, logits_PRL, seen_PRL):
    teacher_PRL = logits_PRL.masked_fill(~seen_PRL, -torch.inf).softmax(-1)
    weight_PR = torch.arange(1.0, 1 + index.query_PR.numel(), dtype=torch.float64).view(index.query_PR.shape)
    return RowTarget(index, DenseRows(teacher_PRL), weight_PR)


def gradients(model, targets, **inputs):
    """Adds the gradient of the divergence alone."""
    with AttentionTap(model) as tap:
        tap.action = action = DistillRows(in_layers({layer: [target] for layer, target in targets.items()}))
        hidden = model(**inputs, use_cache=False).logits
        (sum(action.losses().values()) + 0 * hidden.sum()).backward()


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash"])
def test_packed_gradient_is_the_sum_of_each_sequence_alone(exact_softmax, flash, name, implementation):
    ids, position_ids = packed()
    model = flash(name) if implementation == "flash" else build(name, implementation, torch.float64)
    logits_HLL = torch.randn(HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    index = all_rows()[0]
    number_L = (position_ids[0] == 0).cumsum(0)
    seen_LL = (number_L[:, None] == number_L) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    target = taught(index, logits_HLL, seen_LL)
    gradients(model, {0: target, 2: target}, input_ids=ids, position_ids=position_ids)
    alone = build(name, "sdpa", torch.float64)
    for start, length in zip(STARTS, LENGTHS):
        part = slice(start, start + length)
        own = RowTarget(
            all_rows(length)[0],
            DenseRows(target.teacher.prob_PRL[:, part, part]),
            target.weight_PR[:, part],
        )
        gradients(alone, {0: own, 2: own}, input_ids=ids[:, part])
    for (name_, mine), theirs in zip(model.named_parameters(), alone.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name_)


@pytest.mark.parametrize("implementation", ["sdpa", "flash"])
def test_packed_sensitivity_counts_each_sequence_alone(flash, implementation):
    ids, position_ids = packed()
    model = flash("llama-gqa") if implementation == "flash" else build("llama-gqa", implementation, torch.float64)
    alone, expected = build("llama-gqa", "sdpa", torch.float64), torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    found = sensitivity(model, input_ids=ids, position_ids=position_ids)
    entries = 0
    for start, length in zip(STARTS, LENGTHS):
        part = sensitivity(alone, input_ids=ids[:, start : start + length])
        expected += torch.stack([part.squared[layer][0] for layer in range(LAYERS)])
        entries += int(part.entries[0][0])
    for layer in range(LAYERS):
        torch.testing.assert_close(found.squared[layer][0], expected[layer], rtol=1e-10, atol=0)
        assert int(found.entries[layer][0]) == entries


def sensitivity(model, **inputs):
    with AttentionTap(model) as tap:
        tap.action = action = MeasureSensitivity(torch.ones_like(inputs["input_ids"], dtype=torch.bool))
        model(**inputs, use_cache=False).logits.square().sum().backward()
    return action


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window"])
def test_flash_rows_with_padding(exact_softmax, flash, name, padding):
    batch = make_batch(padding)
    model, real = flash(name), batch["attention_mask"].bool()
    with torch.no_grad():
        maps = run(twin_of(model, name), batch, output_attentions=True).attentions
    found = record(model, all_rows(samples=3), input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for layer, rows in found.items():
        mine = rows.unflatten(0, (3, -1)).transpose(1, 2)[real]
        torch.testing.assert_close(mine, maps[layer].transpose(1, 2)[real], rtol=0, atol=1e-9)


def test_boundaries_given_as_lengths(flash):
    ids, position_ids = packed()
    model = flash("llama-gqa")
    bounds = torch.tensor([0, 4, 9, 11], dtype=torch.int32)
    given = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 5, "max_length_k": 5}
    by_positions = record(model, all_rows(), input_ids=ids, position_ids=position_ids)
    by_lengths = record(model, all_rows(), input_ids=ids, position_ids=position_ids, **given)
    for layer in range(LAYERS):
        assert torch.equal(by_positions[layer], by_lengths[layer])


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "mistral-window", "gemma2"])
def test_flex_rows_equal_eager_maps(name):
    """Without padding: flex attention on a CPU gives nan for rows of padding, and has no backward there."""
    batch, model = make_batch("none"), build(name, "flex_attention")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    # Flex attention's own eager form: the same masks and numbers without a minute of compiling.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        maps = run(twin_of(model, name), batch, output_attentions=True).attentions
        found = record(model, all_rows(samples=3), **inputs)
    for layer, rows in found.items():
        torch.testing.assert_close(rows.unflatten(0, (3, -1)), maps[layer], rtol=0, atol=5e-6)


def call_with(mask=None, window=None, segment_BL=None):
    q = torch.zeros(2, HEADS, 6, 2)
    return AttentionCall(0, q, q, q, mask, 1.0, window=window, segment_BL=segment_BL)


def seen(call):
    index = RowIndex(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([[2, 5], [0, 4]]))
    return (mask_scores(torch.zeros(2, 2, 6), call, index) == 0).int().tolist()


def test_segments_cut_the_causal_rows():
    segments = torch.tensor([[1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 2, 3]])
    assert seen(call_with(segment_BL=segments)) == [
        [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]],
        [[1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0]],
    ]
    assert seen(call_with(segment_BL=segments, window=2)) == [
        [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]],
        [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]],
    ]


def test_block_mask_rows_depend_on_sample_and_head():
    def rule(sample, head, query, key):
        return (key <= query) & (key >= sample + head)

    mask = create_block_mask(rule, 2, HEADS, 6, 6, device="cpu")
    assert seen(call_with(mask)) == [
        [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]],
        [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]],
    ]


def test_a_bias_joins_any_mask_and_keeps_its_gradient():
    bias = torch.randn(1, HEADS, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    causal = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    lowest = torch.finfo(torch.float32).min
    expected = bias.masked_fill(~causal, lowest)
    added = torch.zeros(1, 1, 6, 6).masked_fill(~causal, lowest)
    for joined in (add_bias(None, bias, None), add_bias(causal, bias, None)):
        torch.testing.assert_close(joined, expected)
    torch.testing.assert_close(add_bias(added, bias, None)[..., causal[0, 0]], expected[..., causal[0, 0]])
    add_bias(causal, bias, None).masked_fill(~causal, 0).sum().backward()
    assert torch.equal(bias.grad, causal.float().expand_as(bias))
    with pytest.raises(ModelError, match="bias"):
        add_bias(torch.ones(2, 6), bias, None)


class Layer(torch.nn.Module):
    layer_idx = 3
    is_causal = True


def read(module=None, name="sdpa", keys=6, **kwargs):
    q, k = torch.zeros(2, HEADS, 6, 2), torch.zeros(2, HEADS, keys, 2)
    return read_call(name, module or Layer(), q, k, k, None, kwargs)


def test_what_a_call_cannot_tell_is_refused():
    assert read().layer == 3
    with pytest.raises(ModelError, match="both directions"):
        read(is_causal=False)
    with pytest.raises(ModelError, match="8 keys for 6 tokens"):
        read(keys=8)
    with pytest.raises(ModelError, match="inside the flash kernel"):
        read(name="flash_attention_2", indices=torch.zeros(1))
    with pytest.raises(ModelError, match="sinks of shape"):
        read(s_aux=torch.zeros(3))
    with pytest.raises(ModelError, match="layer index"):
        read(torch.nn.Identity())


def test_positions_mean_packing_under_flash_only():
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    one = torch.zeros(1, HEADS, 6, 2)

    def segments(name, q, mask=None):
        call = read_call(name, Layer(), q, q, q, mask, {"position_ids": positions.expand(len(q), -1)})
        return None if call.segment_BL is None else call.segment_BL.tolist()

    assert segments("flash_attention_2", one) == [[1, 1, 1, 2, 2, 2]]
    assert segments("sdpa", one) is None
    assert segments("flash_attention_2", one, torch.ones(1, 6)) is None
    # Flash itself does not look at the positions of several rows.
    assert segments("flash_attention_2", torch.zeros(2, HEADS, 6, 2)) is None

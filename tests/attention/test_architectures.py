"""Every architecture of the matrix against its own eager attention maps: rows, gradients, sensitivity.

The reference is the model's eager implementation with ``output_attentions``; the tapped model runs on sdpa wherever it
can. All of it is in double precision, so that a window, cap, sink or bias that is left out cannot hide.
"""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import MATRIX, REFUSED, STRICT, Architecture, build, eager_twin
from row_cases import in_layers
from tiny_models import make_batch, run
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as eager_with_sinks

from seekr_cl.attention import (
    AttentionTap,
    DenseRows,
    DistillRows,
    MeasureSensitivity,
    RecordRows,
    RowIndex,
    RowTarget,
)
from seekr_cl.errors import ModelError
from seekr_cl.methods.answers import AnswerHead
from seekr_cl.methods.base import label_term
from seekr_cl.methods.losses import causal_lm_loss

each_padding = pytest.mark.parametrize("padding", ["none", "left"])


# Module scope groups the tests by row, so that each model is built once.
@pytest.fixture(scope="module", params=MATRIX, ids=lambda row: row.kind)
def built(request):
    model = build(request.param)
    return request.param, model, eager_twin(request.param, model)


@pytest.fixture
def case(built, exact_softmax):
    """A row, its model and the eager twin."""
    for model in built[1:]:
        model.zero_grad(set_to_none=True)
    return built


@contextlib.contextmanager
def reference_attention(row: Architecture, model):
    """The eager function whose maps are the reference, where it is not simply the model's own."""
    if not row.reference:
        yield
        return
    file = sys.modules[type(model).__module__]
    original, last = file.eager_attention_forward, {}

    def one_map(module, query, key, value, attention_mask, **kwargs):
        if last.get("query") is not query:
            output, last["map"] = original(module, query, key, value, attention_mask, **kwargs)
            last["query"] = query
            return output, last["map"]
        heads = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return (last["map"] @ heads).transpose(1, 2), last["map"]

    def sink_inside(module, query, key, value, attention_mask, **kwargs):
        # The model's own output to the last bit (it computes the sink's share in float32), with the map's gradient.
        output, _ = original(module, query, key, value, attention_mask, **kwargs)
        exact, map_BHLL = eager_with_sinks(module, query, key, value, attention_mask, **kwargs)
        return output.detach() + (exact - exact.detach()), map_BHLL

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "eager_attention_forward", sink_inside if row.reference == "sink outside" else one_map)
        yield


def reference(row, twin, batch):
    """Logits and ``{layer: map}`` of the eager implementation."""
    with reference_attention(row, twin):
        output = run(twin, batch, output_attentions=True)
    # Hybrids give one entry a layer or one an attention layer.
    maps = output.attentions
    if len(maps) != len(row.layers):
        maps = [maps[layer] for layer in row.layers]
    return output.logits, dict(zip(row.layers, maps))


def everything(heads, batch, length):
    """All queries of all heads of all samples."""
    wanted = {}
    for layer, count in heads.items():
        sample_P = torch.arange(batch).repeat_interleave(count)
        query_PR = torch.arange(length).expand(len(sample_P), -1)
        wanted[layer] = RowIndex(sample_P, torch.arange(count).repeat(batch), query_PR)
    return wanted


@each_padding
def test_rows(case, padding):
    row, model, twin = case
    batch = make_batch(padding)
    size, length = batch["input_ids"].shape
    real = batch["attention_mask"].bool()
    with torch.no_grad(), AttentionTap(model) as tap:
        logits, maps = reference(row, twin, batch)
        assert tuple(tap.heads) == row.layers
        record = RecordRows(everything(tap.heads, size, length))
        with tap.use(record):
            tapped = run(model, batch).logits
    torch.testing.assert_close(tapped[real], logits[real], rtol=0, atol=max(1e-9, row.tolerance))
    for layer, found in record.rows.items():
        mine = found.unflatten(0, (size, -1)).transpose(1, 2)[real]
        torch.testing.assert_close(
            mine, maps[layer].transpose(1, 2)[real].to(mine), rtol=0, atol=1e-9 if row.tolerance == STRICT else 1e-6
        )
    assert record.rows.keys() == maps.keys()


def teach(maps, real, sinks: bool):
    """Random teachers for the first and the last layer, over the keys that a row can see."""
    generator = torch.Generator().manual_seed(9)
    made = {}
    for layer in {min(maps), max(maps)}:
        heads = maps[layer].shape[1]
        sample_P, head_P = torch.tensor([0, 0, 1, 2]), torch.tensor([0, heads - 1, 1, heads - 1])
        query_PR = torch.stack([torch.where(real[s])[0][[0, -1, -1, 3]] for s in sample_P])
        seen_PRL = maps[layer].detach()[sample_P[:, None], head_P[:, None], query_PR] > 0
        logits = 2 * torch.randn(seen_PRL.shape, generator=generator, dtype=maps[layer].dtype)
        teacher_PRL = logits.masked_fill(~seen_PRL, -torch.inf).softmax(-1) * (0.7 if sinks else 1.0)
        weight_PR = torch.rand(query_PR.shape, generator=generator, dtype=maps[layer].dtype)
        made[layer] = RowTarget(RowIndex(sample_P, head_P, query_PR), DenseRows(teacher_PRL), weight_PR)
    return made


def eager_kl(map_BHLL, target, sinks: bool):
    """The divergence written out on an eager map."""
    index, T = target.index, target.teacher.prob_PRL
    row_PRL = map_BHLL[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
    kl_PR = (torch.special.xlogy(T, T) - T * torch.log(torch.where(T > 0, row_PRL, 1.0))).sum(-1)
    if sinks:
        rest_PR, missed_PR = 1 - T.sum(-1), 1 - row_PRL.sum(-1)
        kl_PR = kl_PR + rest_PR * (rest_PR.log() - missed_PR.log())
    return (target.weight_PR * kl_PR).sum()


@each_padding
def test_gradients(case, padding):
    row, model, twin = case
    batch = make_batch(padding)
    logits, maps = reference(row, twin, batch)
    sinks = {layer: bool((maps[layer][0].sum(-1) < 1 - 1e-9).any()) for layer in maps}
    targets = teach(maps, batch["attention_mask"].bool(), False)
    targets |= {layer: t for layer, t in teach(maps, batch["attention_mask"].bool(), True).items() if sinks[layer]}
    expected = {layer: eager_kl(maps[layer], target, sinks[layer]) for layer, target in targets.items()}
    (causal_lm_loss(logits, batch["labels"]) + 3 * sum(expected.values())).backward()
    with AttentionTap(model) as tap:
        tap.action = action = DistillRows(in_layers({layer: [target] for layer, target in targets.items()}))
        logits = run(model, batch).logits
        losses = action.losses()
        (causal_lm_loss(logits, batch["labels"]) + 3 * sum(losses.values())).backward()
    for layer, value in losses.items():
        assert float(value.detach()) == pytest.approx(float(expected[layer].detach()), rel=max(1e-9, row.tolerance))
    theirs = {name: parameter.grad for name, parameter in twin.named_parameters()}
    mine = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(grad.abs().max()) for grad in theirs.values() if grad is not None)
    for name, grad in theirs.items():
        assert (grad is None) == (mine[name] is None), name
        if grad is not None:
            torch.testing.assert_close(
                mine[name], grad, rtol=0, atol=row.tolerance * largest, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_logits_at_the_labels_alone_and_in_chunks(case):
    """Through the model's own forward pass, with the soft-cap or scale that it applies; none needs the long way."""
    _, model, _ = case
    batch = make_batch("right")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    expected = causal_lm_loss(run(model, batch).logits, batch["labels"])
    of_all = torch.autograd.grad(expected, weights, allow_unused=True)
    for most in (1000, 3):
        AnswerHead.of(model).most = most
        value = label_term(model, batch).value
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        for mine, theirs in zip(torch.autograd.grad(value, weights, allow_unused=True), of_all, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))
    assert AnswerHead.of(model).most == most


@each_padding
def test_sensitivity(case, padding):
    row, model, twin = case
    batch = make_batch(padding)
    real = batch["attention_mask"].bool()
    logits, maps = reference(row, twin, batch)
    gradients = torch.autograd.grad(causal_lm_loss(logits, batch["labels"]), list(maps.values()))
    with AttentionTap(model) as tap:
        tap.action = action = MeasureSensitivity(real)
        causal_lm_loss(run(model, batch).logits, batch["labels"]).backward()
    assert tuple(sorted(action.squared)) == row.layers
    for (layer, map_BHLL), gradient in zip(maps.items(), gradients):
        seen_BHLL = (map_BHLL > 0) & real[:, None, :, None] & real[:, None, None]
        expected = (gradient.square() * seen_BHLL).sum((-1, -2))
        torch.testing.assert_close(action.squared[layer].to(expected), expected, rtol=row.tolerance, atol=1e-30)
        assert action.entries[layer].tolist() == seen_BHLL[:, 0].sum((1, 2)).tolist()


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.kind)
def test_refused(row):
    model = build(row)
    with pytest.raises(ModelError) as caught:
        AttentionTap(model)
    assert row.reason in str(caught.value)
    assert row.kind in str(caught.value).lower()


def test_compressed_keys_are_refused_when_they_come():
    row = next(row for row in MATRIX if row.kind == "deepseek_v4")
    config = {"layer_types": ["sliding_attention", "compressed_sparse_attention"], "num_hidden_layers": 2}
    model = build(replace(row, config=config))
    with AttentionTap(model) as tap, tap.use(RecordRows({})), pytest.raises(ModelError, match="keys for 11 tokens"):
        run(model, make_batch("none"))


def test_page_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    import architectures_page

    assert architectures_page.PAGE.read_text(encoding="utf-8") == architectures_page.page(), (
        "run recipes/architectures_page.py"
    )


def test_matrix_is_large_and_has_no_doubles():
    kinds = [row.kind for row in [*MATRIX, *REFUSED]]
    assert len(MATRIX) >= 50
    assert len(kinds) == len(set(kinds))

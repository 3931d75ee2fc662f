"""Rows that share a sequence are what they are alone: outputs, gradients, attention rows, sensitivity, by family.

Each row alone, without any padding, is the reference; all of it in double precision.
"""

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from architectures import MATRIX, REFUSED, Architecture
from architectures import build as build_in_eval
from torch import Tensor

from seekr_cl.attention import AttentionTap, InTurn, MeasureSensitivity, RecordRows, RowIndex
from seekr_cl.attention.packing import plan_packing
from seekr_cl.errors import ConfigError, ModelError
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.models.packing import Packing, packed

LENGTHS = (9, 4, 5, 3)
ROWS = [torch.randint(3, 40, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
KINDS = ["llama", "gemma3_text", "gemma2", "gpt2", "doge", "deepseek_v3", "diffllama", "mixtral", "flint", "phi3"]
"""Plain, window, soft-cap on eager, learned positions, a learned mask, latent, one map twice, experts, sinks, fused."""
REFUSES = {
    **dict.fromkeys(("bamba", "qwen3_next", "lfm2", "falcon_h1"), "in one sequence are not what they are alone"),
    # Transformers makes their masks, or counts their positions, without asking where a row begins.
    **dict.fromkeys(("gpt_oss", "afmoe", "opt", "deepseek_v32", "falcon"), "in one sequence are not what they are"),
    **dict.fromkeys(("bloom", "mpt", "mamba", "mamba2", "rwkv"), "takes no position_ids"),
    "llama4_text": "no decoder apart from its head",
}
BY_KIND = {row.kind: row for row in (*MATRIX, *REFUSED)}


def build(row: Architecture) -> torch.nn.Module:
    """In training, where batches are packed; nothing is dropped out."""
    return build_in_eval(row).train()


def batch_of(side: str) -> dict[str, Tensor]:
    width = max(LENGTHS) + 2
    ids_BL, mask_BL = torch.zeros((2, len(ROWS), width), dtype=torch.long)
    for number, row in enumerate(ROWS):
        start = 0 if side == "right" else width - len(row)
        ids_BL[number, start : start + len(row)], mask_BL[number, start : start + len(row)] = torch.tensor(row), 1
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": ids_BL.masked_fill(mask_BL == 0, -100)}


@pytest.fixture(scope="module", params=KINDS)
def row(request: pytest.FixtureRequest) -> Architecture:
    return BY_KIND[request.param]


def observed(model: torch.nn.Module, batch: dict[str, Tensor], wanted: dict[int, RowIndex]) -> Iterator[object]:
    """Logits of the real tokens, the recorded rows, and after the backward pass the squared norms and the gradients."""
    real = batch["attention_mask"].bool()
    model.zero_grad(set_to_none=True)
    with AttentionTap(model) as tap:
        record, measure = RecordRows(wanted), MeasureSensitivity(real)
        tap.action = InTurn(record, measure)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits_BLV = model(**given, use_cache=False).logits
        # The sum and not the mean, so that rows alone add up to rows together.
        (causal_lm_loss(logits_BLV, batch["labels"]) * (batch["labels"][:, 1:] != -100).sum()).backward()
    yield logits_BLV[real]
    yield record.rows
    yield measure.squared
    yield measure.entries
    yield {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def every_row(heads: dict[int, int], sample: int, start: int, length: int) -> dict[int, RowIndex]:
    at = start + torch.arange(length)
    return {
        layer: RowIndex(torch.full((count,), sample), torch.arange(count), at.expand(count, -1))
        for layer, count in heads.items()
    }


def alone(model: torch.nn.Module, heads: dict[int, int]) -> list[list]:
    found = []
    for row in ROWS:
        ids_1L = torch.tensor([row])
        one = {"input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L), "labels": ids_1L}
        found.append(list(observed(model, one, every_row(heads, 0, 0, len(row)))))
    return found


def close(mine: Tensor, theirs: Tensor, row: Architecture, scale: float = 1.0) -> None:
    torch.testing.assert_close(mine.to(theirs), theirs, rtol=0, atol=max(1e-9, row.tolerance, 2e-7) * scale)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_in_one_sequence_are_rows_alone(row: Architecture, side: str, exact_softmax: None) -> None:
    model = build(row)
    with AttentionTap(model) as tap:
        heads = tap.heads
    ones, batch = alone(model, heads), batch_of(side)
    width = batch["input_ids"].shape[1]
    for sample, length in ((0, LENGTHS[0]), (3, LENGTHS[3])):
        start = 0 if side == "right" else width - length
        with packed(model, ROWS):
            found = list(observed(model, batch, every_row(heads, sample, start, length)))
            assert next(p for p in model.modules() if hasattr(p, "_seekr_packing"))._seekr_packing.plan.packed == (3, 9)
        logits, rows, squared, entries, grads = found
        close(logits, torch.cat([one[0] for one in ones]), row)
        for layer in heads:
            own = rows[layer][..., start : start + length]
            close(own, ones[sample][1][layer], row)
            beyond = torch.cat([rows[layer][..., :start], rows[layer][..., start + length :]], -1)
            assert not beyond.any(), "a row reaches beyond its own tokens"
            theirs = torch.cat([one[2][layer] for one in ones])
            torch.testing.assert_close(squared[layer], theirs.to(squared[layer]), rtol=1e-6, atol=1e-12)
            assert entries[layer].tolist() == [int(one[3][layer]) for one in ones]
        sums = {name: sum(one[4].get(name, 0) for one in ones) for name in grads}
        scale = max(float(grad.abs().max()) for grad in grads.values())
        for name, grad in grads.items():
            close(grad, sums[name], row, scale)


@pytest.mark.parametrize("kind", REFUSES)
def test_models_that_do_not_keep_rows_apart_are_refused(kind: str) -> None:
    model = build(BY_KIND[kind])
    with pytest.raises(ConfigError, match=REFUSES[kind]) as caught, packed(model, ROWS):
        pass
    assert kind in str(caught.value)
    assert "set packing: false" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(part._forward_hooks or "_seekr_packing" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("rows", [[[5, 6, 7]], [[5, 6, 7], [7, 8, 9], [5, 5, 5]], [[5]]], ids=len)
def test_rows_of_one_length_try_a_model_too(rows: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="alone"), packed(build(BY_KIND["gpt_oss"]), [*rows, rows[0] * 2]):
        pass
    if len(rows[0]) > 1:
        with pytest.raises(ConfigError, match="alone"), packed(build(BY_KIND["gpt_oss"]), rows):
            pass


def test_a_half_precision_model_is_tried_as_well() -> None:
    rows = [row * 3 for row in ROWS]
    with packed(build(BY_KIND["llama"]).bfloat16(), rows):
        pass
    with pytest.raises(ConfigError, match="alone"), packed(build(BY_KIND["gpt_oss"]).bfloat16(), rows):
        pass


def test_copies_of_a_model_and_models_given_back_do_not_pack() -> None:
    model, batch = build(BY_KIND["llama"]), batch_of("right")
    del batch["labels"]
    shapes: list[tuple[int, ...]] = []

    def note(part: torch.nn.Module, args: Sequence[Tensor]) -> None:
        shapes.append(tuple(args[0].shape[:2]))

    model.model.layers[0].register_forward_pre_hook(note)
    with packed(model, ROWS):
        twin = copy.deepcopy(model)
        shapes.clear()
        for one in (model, twin):
            one(**batch, use_cache=False)
    model(**batch, use_cache=False)
    assert shapes == [(3, 9), (4, 11), (4, 11)]


def test_a_cache_is_refused_and_what_cannot_be_packed_stays_padded() -> None:
    model, batch = build(BY_KIND["llama"]), batch_of("right")
    del batch["labels"]
    cache = model(input_ids=batch["input_ids"][:, :2]).past_key_values
    with packed(model, ROWS):
        with pytest.raises(ModelError, match="goes on from a cache"):
            model(input_ids=batch["input_ids"], attention_mask=torch.ones((4, 13)), past_key_values=cache)
        model.eval().generate(**batch, max_new_tokens=2)
        model.train()
        batch["attention_mask"][0, 3] = 0  # a hole in a row
        with_hole = model(**batch, use_cache=False).logits
    torch.testing.assert_close(with_hole, model(**batch, use_cache=False).logits, rtol=0, atol=0)


def test_plans() -> None:
    mask_BL = batch_of("left")["attention_mask"]
    plan = plan_packing(mask_BL)
    assert plan is not None
    assert (plan.padded, plan.packed) == ((4, 11), (3, 9))
    assert plan.position_SM.tolist() == [[*range(9)], [0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, *[0] * 6]]
    values_BLD = torch.randn(4, 11, 2)
    torch.testing.assert_close(plan.unpack(plan.pack(values_BLD)), values_BLD * mask_BL[..., None])
    one = plan_packing(mask_BL, one_sequence=True)
    assert one is not None
    assert one.packed == (1, sum(LENGTHS))
    # Nothing to save; and rows without tokens.
    assert plan_packing(torch.ones(3, 5)) is None
    assert plan_packing(torch.tensor([[1, 1, 1], [1, 1, 0]])) is None
    assert plan_packing(torch.tensor([[1, 0, 0], [0, 0, 0]])) is None


def test_a_packing_object_says_what_it_packs() -> None:
    packing = Packing(build(BY_KIND["llama"]))
    assert packing.plan is None
    assert packing.kind == "a 'llama' model"

"""Rows recomputed from q and k equal the maps that eager attention returns, on every family and padding."""

import pytest
import torch
from tiny_models import TABLE, build, each_padding, each_setup, make_batch, run, twin_of, valid

from seekr_cl.attention import AttentionTap, RecordRows, RowIndex
from seekr_cl.attention import call as call_module


def everything(heads: dict[int, int], batch: int, length: int) -> dict[int, RowIndex]:
    """All queries of all heads of all samples."""
    wanted = {}
    for layer, count in heads.items():
        sample_P = torch.arange(batch).repeat_interleave(count)
        query_PR = torch.arange(length).expand(len(sample_P), -1)
        wanted[layer] = RowIndex(sample_P, torch.arange(count).repeat(batch), query_PR)
    return wanted


@each_setup
@each_padding
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 5e-6)], ids=["f64", "f32"])
def test_rows_equal_eager_maps(exact_softmax, name, implementation, padding, dtype, tolerance):
    # In float32 the tolerance is that of the layers below: sdpa's output differs from eager's in the last digits.
    model, batch = build(name, implementation, dtype), make_batch(padding)
    size, length = batch["input_ids"].shape
    with torch.no_grad():
        maps = run(twin_of(model, name), batch, output_attentions=True).attentions
    with AttentionTap(model) as tap, torch.no_grad():
        assert list(tap.heads) == list(range(len(maps)))
        record = RecordRows(everything(tap.heads, size, length))
        plain = run(model, batch).logits
        with tap.use(record):
            tapped = run(model, batch).logits
    assert torch.equal(plain, tapped)
    real = batch["attention_mask"].bool()
    for layer, found in record.rows.items():
        mine = found.unflatten(0, (size, -1)).transpose(1, 2)[real]
        torch.testing.assert_close(mine, maps[layer].transpose(1, 2)[real], rtol=0, atol=tolerance)
        unseen = ~valid(batch["attention_mask"], TABLE[name].windows[layer])[real]
        assert not mine.transpose(0, 1)[:, unseen].any(), "probability outside the mask"


@pytest.mark.parametrize("elements", [1, 30, 1 << 22])
def test_tiles_and_repeated_queries(monkeypatch, elements):
    model, batch = build("llama-gqa", "sdpa"), make_batch("left")
    with torch.no_grad():
        maps = run(twin_of(model, "llama-gqa"), batch, output_attentions=True).attentions
    monkeypatch.setattr(call_module, "TILE_ELEMENTS", elements)
    sample_P, head_P = torch.tensor([2, 0, 1, 0]), torch.tensor([3, 0, 1, 0])
    query_PR = torch.tensor([[10, 10, 7], [0, 5, 0], [4, 9, 10], [3, 3, 3]])
    with AttentionTap(model) as tap, torch.no_grad():
        record = RecordRows({1: RowIndex(sample_P, head_P, query_PR)})
        with tap.use(record):
            run(model, batch)
    assert list(record.rows) == [1]
    expected = maps[1][sample_P[:, None], head_P[:, None], query_PR]
    torch.testing.assert_close(record.rows[1], expected, rtol=0, atol=1e-6)


def test_no_pairs_gives_no_rows():
    model, batch = build("llama-gqa", "sdpa"), make_batch("none")
    empty = RowIndex(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2).long())
    with AttentionTap(model) as tap, torch.no_grad():
        record = RecordRows({0: empty})
        with tap.use(record):
            run(model, batch)
    assert record.rows[0].shape == (0, 2, batch["input_ids"].shape[1])

"""Compact forms of teacher rows: what is exact, what is right on average, what is small."""

import pytest
import torch

from seekr_cl.attention import AttentionCall, RowIndex, attention_rows
from seekr_cl.attention.stored import StoredDense, StoredFactors, StoredTopK, collate_rows, join_layers, stored_from
from seekr_cl.attention.stored.codec import DTYPES, decode_probabilities, encode_probabilities

HEADS, QUERIES, LENGTH, SIZE = 4, 40, 90, 8
HALF = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3, "int8": 8e-3}


def make_call(sinks: bool = False, seed: int = 0):
    """One sample's call with grouped heads, and an index of all heads at random queries."""
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(1, HEADS, LENGTH, SIZE, generator=generator)
    k = torch.randn(1, HEADS // 2, LENGTH, SIZE, generator=generator)
    query_R = torch.randperm(LENGTH, generator=generator)[:QUERIES]
    index = RowIndex(torch.zeros(HEADS).long(), torch.arange(HEADS), query_R.expand(HEADS, -1))
    sink_H = torch.randn(HEADS, generator=generator) + 1 if sinks else None
    return AttentionCall(0, q, k, k, None, SIZE**-0.5, sink_H=sink_H), index


def forms(call, index, dtype, k=12):
    rows = attention_rows(call, index)
    return {
        "dense": StoredDense.encode(rows, dtype),
        "bucket": StoredTopK.encode(rows, k, dtype, "bucket"),
        "sampled": StoredTopK.encode(rows, k, dtype, "sampled"),
        "factors": StoredFactors.encode(call, index, dtype),
    }


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_entries_and_masses(dtype, sinks):
    call, index = make_call(sinks)
    rows = attention_rows(call, index)
    mass_MR = rows.sum(-1)
    assert bool((mass_MR < 0.95).any()) == sinks
    for name, stored in forms(call, index, dtype).items():
        if name == "sampled":
            continue
        back = rows - stored.moved(call, index, rows)
        # Half a step of 8 bits is 1/127 in the exponent of factors, scaled by the scores' size.
        tolerance = 8 * HALF[dtype] if name == "factors" else HALF[dtype]
        torch.testing.assert_close(back.sum(-1), mass_MR, rtol=0, atol=tolerance, msg=name)
        if name in ("dense", "factors"):
            torch.testing.assert_close(back, rows, rtol=0, atol=tolerance, msg=name)
        if name == "bucket":
            key = rows.topk(12).indices
            torch.testing.assert_close(back.gather(-1, key), rows.gather(-1, key), rtol=0, atol=tolerance)
        assert not (back * (rows == 0)).any(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_rows_keep_large_entries_and_share_the_rest_equally(dtype):
    call, index = make_call()
    rows = attention_rows(call, index)
    stored = StoredTopK.encode(rows, 12, dtype, "sampled")
    prob, key, bucket, _ = stored.decode()
    assert not bucket.any()
    for head in range(HEADS):
        for row in range(QUERIES):
            p, keys, drawn = prob[head, row], key[head, row], stored.code_MRK[head, row] == 0
            whole = rows[head, row]
            if not p[drawn].any():
                continue
            tau = float(p[drawn][0])
            assert torch.equal(p[drawn], torch.full_like(p[drawn], tau))
            assert len(set(keys.tolist())) == 12
            torch.testing.assert_close(p[~drawn], whole[keys[~drawn]], rtol=0, atol=HALF[dtype])
            # Kept as they are: exactly those above tau, which is what each drawn key stands for.
            assert set(keys[~drawn].tolist()) == set(torch.where(whole > tau * (1 + 1e-2))[0].tolist()) | set(
                keys[~drawn][(whole[keys[~drawn]] - tau).abs() <= 1e-2 * tau].tolist()
            )
            assert float(whole[keys[drawn]].max()) <= tau * (1 + 1e-2)


def test_sampling_is_right_on_average():
    """Over many rows of one distribution, each key carries what it has; so does any sum over keys."""
    probability = torch.randn(200, generator=torch.Generator().manual_seed(1)).mul(1.5).softmax(-1)
    rows = probability.expand(1, 20_000, -1).contiguous()
    stored = StoredTopK.encode(rows, 16, "float32", "sampled")
    prob, key, _, offset = stored.decode()
    mean = torch.zeros(200).scatter_add_(0, key.flatten(), prob.flatten()) / rows.shape[1]
    torch.testing.assert_close(mean, probability, rtol=0.05, atol=2e-4)
    student = torch.randn(200, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    estimates = (torch.special.xlogy(prob, prob) - prob * student[key]).sum(-1) + offset
    expected = (probability * (probability.log() - student)).sum()
    assert estimates.mean() == pytest.approx(float(expected), rel=2e-3)
    bucket = StoredTopK.encode(rows[:, :1], 16, "float32", "bucket").decode()
    others = 1 - student[bucket[1][0, 0]].exp().sum()
    merged = (bucket[0][0, 0] * (bucket[0][0, 0].log() - student[bucket[1][0, 0]])).sum()
    merged = merged + bucket[2][0, 0] * (bucket[2][0, 0] / others).log()
    assert float(merged) < 0.9 * float(expected), "one bucket must lose what the sample keeps"


def test_short_samples_keep_everything():
    call, index = make_call()
    rows = attention_rows(call, index)[..., :10]
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-30)
    for tail in ("sampled", "bucket"):
        stored = StoredTopK.encode(rows, 12, "float32", tail)
        assert stored.offset_MR is None
        prob, key, left, _ = stored.decode()
        assert torch.equal(torch.zeros_like(rows).scatter_(-1, key, prob), rows)
        assert float(left.max()) < 1e-6


def test_early_queries_that_see_fewer_keys_than_are_kept():
    rows = torch.zeros(1, 3, 50)
    rows[0, 0, 0] = 1.0
    rows[0, 1, :2] = 0.5
    rows[0, 2] = 0.02
    for dtype in DTYPES:
        prob, key, _, offset = StoredTopK.encode(rows, 8, dtype, "sampled").decode()
        back = torch.zeros_like(rows).scatter_add_(-1, key, prob)
        torch.testing.assert_close(back[0, :2], rows[0, :2], rtol=0, atol=HALF[dtype])
        torch.testing.assert_close(back.sum(-1), torch.ones(1, 3), rtol=0, atol=2e-3)
        assert offset[0, :2].abs().max() < 1e-5
        assert len(set(key[0, 2].tolist())) == 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sinks", [False, True])
def test_pick_join_and_tensors(dtype, sinks):
    call, index = make_call(sinks)
    other, _ = make_call(sinks=False, seed=5)
    for name, stored in forms(call, index, dtype).items():
        again = stored_from(stored.tensors())
        assert type(again) is type(stored)
        assert again.num_bytes == stored.num_bytes
        assert again.check(HEADS, QUERIES, LENGTH)
        assert not again.check(HEADS + 1, QUERIES, LENGTH)
        assert not again.check(HEADS, QUERIES, LENGTH - 1 - (LENGTH - 2) * isinstance(again, StoredTopK))
        sinkless = name == "factors" and sinks
        second = forms(*make_call(sinks, 5), dtype)[name] if sinkless else forms(other, index, dtype)[name]
        joined = join_layers([stored.pick([2, 0]), second.pick([3])])
        assert joined.check(3, QUERIES, LENGTH)
        rows = attention_rows(call, index)
        picked = RowIndex(torch.zeros(2).long(), torch.tensor([2, 0]), index.query_PR[:2])
        mine = joined.pick([0, 1]).moved(call, picked, rows[[2, 0]])
        theirs = stored.moved(call, index, rows)[[2, 0]]
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3 if sinks else 1e-7, msg=name)


def test_unknown_tensors_are_refused():
    for tensors in ({"code": torch.zeros(1), "colour": torch.zeros(1)}, {"key": torch.zeros(1)}, {}):
        with pytest.raises(ValueError, match="attention rows"):
            stored_from(tensors)


@pytest.mark.parametrize("name", ["dense", "bucket", "sampled", "factors"])
def test_batches_hold_every_sample_at_its_place(name):
    """Two samples of other lengths and query counts in one padded rectangle."""
    call, index = make_call()
    short = AttentionCall(0, call.q_BHLD[:, :, :50], call.k_BKLD[:, :, :50], call.v_BKLD, None, call.scaling)
    short_index = RowIndex(torch.zeros(2).long(), torch.tensor([1, 3]), torch.tensor([[3, 40, 7]]).expand(2, -1))
    parts = [forms(call, index, "float32", k=12)[name], forms(short, short_index, "float32", k=5)[name]]
    padded, starts = LENGTH + 6, [0, padded_start := LENGTH + 6 - 50]
    teacher = collate_rows(parts, starts, QUERIES, padded)
    sample_P, head_P = torch.tensor([0] * HEADS + [1, 1]), torch.tensor([*range(HEADS), 1, 3])
    query_PR = torch.full((HEADS + 2, QUERIES), padded_start)
    query_PR[:HEADS] = index.query_PR
    query_PR[HEADS:, :3] = short_index.query_PR + padded_start
    q, k = torch.zeros(2, HEADS, padded, SIZE), torch.zeros(2, HEADS // 2, padded, SIZE)
    q[0, :, :LENGTH], k[0, :, :LENGTH] = call.q_BHLD[0], call.k_BKLD[0]
    q[1, :, padded_start:], k[1, :, padded_start:] = short.q_BHLD[0], short.k_BKLD[0]
    real = torch.zeros(2, padded, dtype=torch.long)
    real[0, :LENGTH], real[1, padded_start:] = 1, 1
    both = AttentionCall(0, q, k, k, real, call.scaling)
    where = RowIndex(sample_P, head_P, query_PR)
    rows = attention_rows(both, where)
    found = teacher.compare(rows.clamp_min(1e-30).log(), both, where, 0.0)
    limit = 1e-5 if name in ("dense", "factors", "bucket") else 0.5
    assert float(found.kl_PR[:HEADS].abs().max()) < limit
    assert float(found.kl_PR[HEADS:, :3].abs().max()) < limit
    torch.testing.assert_close(found.mass_PR[HEADS:, :3], torch.ones(2, 3), rtol=0, atol=1e-5)


def test_sizes():
    call, index = make_call()
    rows = attention_rows(call, index)
    count = HEADS * QUERIES
    assert StoredDense.encode(rows, "float32").num_bytes == count * LENGTH * 4
    assert StoredTopK.encode(rows, 12, "int8", "bucket").num_bytes == count * (12 * 2 + 2)
    assert StoredTopK.encode(rows, 12, "int8", "sampled").num_bytes == count * (12 * 2 + 4)
    assert StoredFactors.encode(call, index, "int8").num_bytes == count * (SIZE + 2) + 2 * LENGTH * (SIZE + 2) + HEADS
    wide = StoredTopK.encode(torch.zeros(1, 1, 300), 12, "int8", "bucket")
    assert wide.key_MRK.dtype == torch.uint16
    assert wide.check(1, 1, 300)
    assert not wide.check(1, 1, int(wide.key_MRK.to(torch.int64).max()))


def test_eight_bits_round_half_a_step_and_nothing_to_zero():
    prob = torch.rand(50, 40, generator=torch.Generator().manual_seed(0)).pow(8)
    prob = prob / prob.sum(-1, keepdim=True)
    code = encode_probabilities(prob, "int8", keep_small=True)
    assert code.min() >= 1
    step = prob.amax(-1, keepdim=True).sqrt() / 255
    assert ((code.float() * step - prob.sqrt()).abs() <= step * (0.5 + (code == 1) * 0.5) + 1e-7).all()
    torch.testing.assert_close(decode_probabilities(code, torch.ones(50)).sum(-1), torch.ones(50))

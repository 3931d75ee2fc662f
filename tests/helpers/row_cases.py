"""Small attention calls with every kind of mask, and what whole score matrices say about them."""

from dataclasses import replace

import pytest
import torch

from seekr_cl.attention import AttentionCall, DenseRows, FactorRows, RowIndex, RowTarget, TopKRows

BATCH, HEADS, GROUPS, LENGTH, SIZE = 2, 4, 2, 6, 3
CASES = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "window": {"window": 2},
    "eps": {"eps": 1e-2},
    "float mask": {"mask": "float"},
    "mask of each head": {"mask": "heads"},
    "bool mask": {"mask": "bool"},
    "real keys": {"mask": "keys"},
    "all at once": {"softcap": 2.0, "eps": 1e-3, "mask": "heads"},
    "window and real keys": {"mask": "keys", "window": 3},
    "packed": {"packed": True},
    "sinks": {"sinks": True},
    "sinks and soft-cap": {"sinks": True, "softcap": 1.0, "mask": "bool"},
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def make_mask(kind):
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, 1, -1, -1).clone()
    causal[1, :, :, 0] = False
    causal[1, :, 0, 0] = True
    lowest = torch.finfo(torch.float64).min
    if kind is None:
        return None
    if kind == "keys":
        return torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]])
    if kind == "bool":
        return causal
    mask = torch.zeros(causal.shape, dtype=torch.float64).masked_fill(~causal, lowest)
    return mask + draw(BATCH, HEADS, LENGTH, LENGTH) if kind == "heads" else mask


def explicit(call, index, case):
    """Probabilities from whole score matrices."""
    k = call.k_BKLD.repeat_interleave(HEADS // GROUPS, 1)
    scores = call.q_BHLD @ k.mT * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if call.window is not None:
        seen &= ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-call.window)
    if call.segment_BL is not None:
        seen = seen & (call.segment_BL[:, None, :, None] == call.segment_BL[:, None, None, :])
    kind = case.get("mask")
    if kind in (None, "keys"):
        both = seen if kind is None else seen & call.mask.bool()[:, None, None]
        scores = scores.masked_fill(~both, -torch.inf)
    elif kind == "bool":
        scores = scores.masked_fill(~call.mask, -torch.inf)
    else:
        scores = (scores + call.mask).clamp(min=torch.finfo(torch.float64).min)
    if call.sink_H is not None:
        column = call.sink_H[None, :, None, None].expand(len(scores), -1, LENGTH, 1)
        scores = torch.cat([scores, column], -1)
    p = scores.softmax(-1)[..., :LENGTH]
    return p[index.sample_P[:, None], index.head_P[:, None], index.query_PR]


def make(case):
    sample_P, head_P = torch.tensor([0, 1, 1, 0]), torch.tensor([3, 0, 2, 2])
    index = RowIndex(sample_P, head_P, torch.tensor([[1, 5, 5], [2, 4, 0], [3, 3, 5], [0, 1, 2]]))
    q = draw(BATCH, HEADS, LENGTH, SIZE).requires_grad_()
    k = draw(BATCH, GROUPS, LENGTH, SIZE).requires_grad_()
    sinks = draw(HEADS).requires_grad_() if case.get("sinks") else None
    packed = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2]]) if case.get("packed") else None
    mask = make_mask(case.get("mask"))
    call = AttentionCall(0, q, k, k.detach(), mask, 0.7, case.get("softcap"), case.get("window"), sinks, packed)
    teacher_PRL = (2 * draw(4, 3, LENGTH, seed=3)).softmax(-1) * (explicit(call, index, case).detach() > 0)
    # Rows that do not sum to one, as rows cut short or stored in half precision.
    teacher_PRL[0, 0] *= 0.6
    return call, index, teacher_PRL, torch.tensor([[1.0, 0.5, 2.0], [0.3, 0, 0.7], [1, 1, 1], [0.1, 0.2, 0.3]]).double()


def dense(index, teacher_PRL, weight_PR):
    return RowTarget(index, DenseRows(teacher_PRL), weight_PR)


def with_inputs(call, q, k, sinks=None):
    return replace(call, q_BHLD=q, k_BKLD=k, sink_H=sinks)


def inputs(call):
    """What gradients flow into."""
    return [tensor for tensor in (call.q_BHLD, call.k_BKLD, call.sink_H) if tensor is not None]


FORMS = ("dense", "top_k", "drawn", "factors")
each_form = pytest.mark.parametrize("form", FORMS)


def teach(form, call, index, case, teacher_PRL):
    """A teacher of that form, with the buckets it stands for: ``(T, p of a row -> p of the buckets, offset)``."""
    if form == "factors":
        generator = torch.Generator().manual_seed(7)
        q = torch.randn(call.q_BHLD.shape, generator=generator, dtype=torch.float64)
        k = torch.randn(call.k_BKLD.shape, generator=generator, dtype=torch.float64)
        sinks = None if call.sink_H is None else call.sink_H.detach() + 1
        T_PRL = explicit(replace(call, q_BHLD=q, k_BKLD=k, sink_H=sinks), index, case)
        groups = torch.tensor([(0, 1), (1, 0), (1, 1)])
        group_P = torch.tensor([0, 1, 2, 0])
        q_PRD = q[index.sample_P[:, None], index.head_P[:, None], index.query_PR]
        rows = FactorRows(q_PRD, k[groups[:, 0], groups[:, 1]], group_P, None if sinks is None else sinks[index.head_P])
        assert torch.equal(groups[group_P], torch.stack([index.sample_P, index.head_P // (HEADS // GROUPS)], 1))
        return rows, (T_PRL, lambda p_PRL: p_PRL, 0.0)
    if form == "dense":
        return DenseRows(teacher_PRL), (teacher_PRL, lambda p_PRL: p_PRL, 0.0)
    prob_PRK, key_PRK = teacher_PRL.topk(3, -1)
    if form == "drawn":
        offset_PR = draw(*prob_PRK.shape[:2])
        rows = TopKRows(prob_PRK, key_PRK, torch.zeros(prob_PRK.shape[:2]), offset_PR)
        return rows, (prob_PRK, lambda p_PRL: p_PRL.gather(-1, key_PRK), offset_PR)
    tail_PR = teacher_PRL.scatter(-1, key_PRK, 0.0).sum(-1)

    def buckets(p_PRL):
        p_PRK = p_PRL.gather(-1, key_PRK)
        return torch.cat([p_PRK, p_PRL.scatter(-1, key_PRK, 0.0).sum(-1, keepdim=True)], -1)

    return TopKRows(prob_PRK, key_PRK, tail_PR), (torch.cat([prob_PRK, tail_PR[..., None]], -1), buckets, 0.0)


def by_hand(call, index, case, bucketed, weight_PR):
    """The weighted divergence with whole probability matrices in the graph."""
    T_PRN, buckets, offset = bucketed
    p_PRL = explicit(call, index, case)
    p_PRN = buckets(p_PRL)
    logs = torch.log(torch.where(T_PRN > 0, p_PRN, 1.0) + case.get("eps", 0.0))
    kl_PR = (torch.special.xlogy(T_PRN, T_PRN) - T_PRN * logs).sum(-1) + offset
    if call.sink_H is not None:
        T_PR, p_PR = (1 - T_PRN.sum(-1)).clamp_min(0), 1 - p_PRL.sum(-1)
        kl_PR = kl_PR + torch.special.xlogy(T_PR, T_PR) - T_PR * torch.where(T_PR > 0, p_PR, 1.0).log()
    return (weight_PR * kl_PR).sum()


def in_layers(wanted: dict[int, list[RowTarget]]) -> list[RowTarget]:
    """Targets that say whose they are."""
    return [replace(one, layers={layer: slice(None)}) for layer, targets in wanted.items() for one in targets]

"""What the earlier model says of a replay batch, read from the memory.

A teacher has two halves: ``collate`` runs in the data loader and makes of picked samples what a batch carries,
``answer`` runs in the step and gives what the losses compare with. Signals that were stored are the answer already;
adapters that have to be asked for it are in ``adapter_teacher``. Rows of all layers and samples become one target,
layer after layer.

Shapes: M samples with rows, R queries, P (sample, head) pairs of a batch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seekr_cl.attention import RowIndex, RowTarget
from seekr_cl.attention.stored import StoredSignal
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.memory.signals import AttentionSignal
from seekr_cl.methods.base import Batch, Layout
from seekr_cl.methods.common.logit_distillation import pad_logits

REDUCTIONS = ("sample_mean", "layer_mean", "sum")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the teachers of a batch's samples say of them.

    Attributes:
        logits: for ``label_and_logit_terms``, one part a teacher.
        rows: for ``DistillRows``.
    """

    logits: list[Batch]
    rows: list[RowTarget]


class StoredTeacher:
    """The signals that lie beside the samples in the memory.

    Args:
        layout: how batches are padded.
        rows: the kind of signal whose rows are distilled; ``None``: logits alone.
        reduction: how rows are weighted, see ``row_targets``.
    """

    def __init__(self, layout: Layout, rows: str | None = None, reduction: str = "sample_mean") -> None:
        self.layout, self.rows, self.reduction = layout, rows, reduction

    def collate(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """The signals of a batch's samples: ``logits``, and ``rows`` of all layers."""
        batch: Batch = {"logits": [pad_logits([sample for _, sample in picked], self.layout, padded)]}
        if self.rows is not None:
            batch["rows"] = row_targets(picked, self.layout, padded, self.reduction, self.rows)
        return batch

    def answer(self, batch: Batch) -> Answer:
        """What ``collate`` gave, on the device."""
        return Answer(batch["logits"], batch.get("rows", []))


class Member(NamedTuple):
    """A sample of the batch whose rows are held.

    Attributes:
        row: its place in the batch.
        start: where its first token stands.
        heads: its task's, by layer.
        query_R: the queries, counted from its first token.
    """

    row: int
    start: int
    heads: Mapping[int, Sequence[int]]
    query_R: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """Rows of a batch, layer after layer.

    Attributes:
        index: which rows.
        weight_PR: each row's weight.
        layers: each layer's pairs.
        order_P: where each pair stands among the members' rows behind one another, each in its layers' order.
    """

    index: RowIndex
    weight_PR: Tensor
    layers: dict[int, slice]
    order_P: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Places":
        """The same on another device; data loaders call this."""
        index, weight_PR = self.index.to(device, non_blocking=non_blocking), self.weight_PR
        return Places(index, weight_PR.to(device, non_blocking=non_blocking), self.layers, self.order_P)


def row_targets(
    picked: list[tuple[MemoryTask, ReplaySample]], layout: Layout, padded: int, reduction: str, of: str = "attention"
) -> list[RowTarget]:
    """What the rows of all layers should be, a target for each form in which the batch's samples store them."""
    by_form: dict[Any, list[tuple[Member, StoredSignal]]] = {}
    for row, (task, sample) in enumerate(picked):
        signal = sample.signals.get(of)
        if isinstance(signal, AttentionSignal) and signal.rows is not None and task.heads:
            member = Member(row, layout.offset(len(sample.ids_L), padded), task.heads, signal.query_R)
            by_form.setdefault(type(signal.rows), []).append((member, signal.rows))
    num_queries = max((len(one.query_R) for pairs in by_form.values() for one, _ in pairs), default=0)
    targets = []
    for form, pairs in by_form.items():
        members = [member for member, _ in pairs]
        place = find_places(members, num_queries, len(picked), reduction)
        rows = form.collate([rows for _, rows in pairs], [one.start for one in members], num_queries, padded)
        targets.append(RowTarget(place.index, rows.tile(place.order_P), place.weight_PR, place.layers))
    return targets


def find_places(members: Sequence[Member], num_queries: int, batch: int, reduction: str) -> Places:
    """Where the rows of some of ``batch`` samples are, padded to ``num_queries`` a pair, and their weights."""
    pairs = [
        (layer, number, head, _row_weight(reduction, batch, len(one.heads[layer]), len(one.query_R), len(one.heads)))
        for number, one in enumerate(members)
        for layer in sorted(one.heads)
        for head in one.heads[layer]
    ]
    order = sorted(range(len(pairs)), key=lambda place: pairs[place][0])
    _, number_P, head_P, weight_P = zip(*(pairs[place] for place in order))
    member_P, layers, end = torch.tensor(number_P), dict[int, slice](), 0
    for layer, count in sorted(Counter(layer for layer, *_ in pairs).items()):
        layers[layer], end = slice(end, end + count), end + count
    # Rows that only fill the rectangle point at a real token and weigh nothing.
    query_MR, real_MR = torch.zeros((2, len(members), num_queries), dtype=torch.long)
    for number, one in enumerate(members):
        query_MR[number] = one.start
        query_MR[number, : len(one.query_R)] += one.query_R
        real_MR[number, : len(one.query_R)] = 1
    row_M = torch.tensor([one.row for one in members])
    index = RowIndex(row_M[member_P], torch.tensor(head_P), query_MR[member_P])
    weight_PR = torch.tensor(weight_P)[:, None] * real_MR[member_P]
    return Places(index, weight_PR, layers, torch.tensor(order))


def _row_weight(reduction: str, batch: int, heads: int, queries: int, layers: int) -> float:
    if reduction == "sum":
        return 1 / batch
    per_layer = 1 / (batch * heads * queries)
    return per_layer / layers if reduction == "sample_mean" else per_layer

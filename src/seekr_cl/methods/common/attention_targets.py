"""Where the rows of a replay batch's samples are, and what they should be.

Shapes: M members, R queries, P (sample, head) pairs of a batch, layer after layer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from seekr_cl.attention import RowIndex, RowTarget
from seekr_cl.attention.stored import StoredSignal, collate_rows
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.memory.signals import AttentionSignal
from seekr_cl.methods.base import Layout

REDUCTIONS = ("sample_mean", "layer_mean", "sum")


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
    """What the rows of all layers should be, one target for each form in which the batch's samples store them.

    Args:
        picked: the batch's samples with their tasks; those without such rows are left out.
        layout: how the batch is padded.
        padded: its length.
        reduction: how rows are weighted, one of ``REDUCTIONS``.
        of: the kind of signal.
    """
    by_form: dict[type, list[tuple[Member, StoredSignal]]] = {}
    for row, (task, sample) in enumerate(picked):
        signal = sample.signals.get(of)
        if isinstance(signal, AttentionSignal) and signal.rows is not None:
            member = Member(row, layout.offset(len(sample.ids_L), padded), task.heads, signal.query_R)
            by_form.setdefault(type(signal.rows), []).append((member, signal.rows))
    num_queries = max((len(one.query_R) for pairs in by_form.values() for one, _ in pairs), default=0)
    targets = []
    for pairs in by_form.values():
        members = [member for member, _ in pairs]
        place = find_places(members, num_queries, len(picked), reduction)
        rows = collate_rows([rows for _, rows in pairs], [one.start for one in members], num_queries, padded)
        targets.append(RowTarget(place.index, rows.tile(place.order_P), place.weight_PR, place.layers))
    return targets


def find_places(members: Sequence[Member], num_queries: int, batch: int, reduction: str) -> Places:
    """Where the rows of some samples of a batch are, and their weights.

    Args:
        members: the samples.
        num_queries: rows of a pair; those beyond a sample's own only fill the rectangle.
        batch: samples in the batch.
        reduction: how rows are weighted.
    """
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

"""Stored attention rows of a batch's samples as the targets of each layer.

Shapes: M heads of one layer, R queries, P (sample, head) pairs of a layer in a batch.
"""

import torch
from torch import Tensor

from seekr_cl.attention import RowIndex, RowTarget
from seekr_cl.attention.stored import StoredSignal, collate_rows
from seekr_cl.memory import AttentionSignal, MemoryTask, ReplaySample
from seekr_cl.methods.base import Layout

REDUCTIONS = ("sample_mean", "layer_mean", "sum")


def row_targets(
    picked: list[tuple[MemoryTask, ReplaySample]], layout: Layout, padded: int, reduction: str, of: str = "attention"
) -> dict[int, list[RowTarget]]:
    """For each layer its targets, one for each form in which the batch's samples store their rows.

    A layer's P pairs are all (sample, head) that some sample of the batch distils there.

    Args:
        picked: the batch's samples with their tasks; those without rows, or with rows of something else, are left out.
        layout: how the batch is padded.
        padded: its length.
        reduction: how rows are weighted, one of ``REDUCTIONS``.
        of: what the rows are of, see ``AttentionSignal``.
    """
    signals = [
        (number, task, sample.attention)
        for number, (task, sample) in enumerate(picked)
        if sample.attention is not None and sample.attention.of == of and sample.attention.rows is not None
    ]
    num_queries = max((len(signal.query_R) for _, _, signal in signals), default=0)
    starts = [layout.offset(len(sample.ids_L), padded) for _, sample in picked]
    targets: dict[int, list[RowTarget]] = {}
    for layer in sorted({layer for _, task, _ in signals for layer in task.heads}):
        by_form: dict[type, list[tuple[int, MemoryTask, AttentionSignal]]] = {}
        for number, task, signal in signals:
            if layer in task.heads:
                by_form.setdefault(type(signal.rows), []).append((number, task, signal))
        targets[layer] = [
            _target(layer, members, starts, num_queries, padded, len(picked), reduction) for members in by_form.values()
        ]
    return targets


def _target(
    layer: int,
    members: list[tuple[int, MemoryTask, AttentionSignal]],
    starts: list[int],
    num_queries: int,
    padded: int,
    batch: int,
    reduction: str,
) -> RowTarget:
    index, weight_PR = _place(layer, members, starts, num_queries, batch, reduction)
    parts: list[StoredSignal] = [signal.of_layer(task.heads, layer) for _, task, signal in members]
    teacher = collate_rows(parts, [starts[number] for number, _, _ in members], num_queries, padded)
    return RowTarget(index, teacher, weight_PR)


def placed_rows(
    asked: list[tuple[MemoryTask, ReplaySample]],
    rows: list[int],
    layout: Layout,
    padded: int,
    batch: int,
    reduction: str,
) -> dict[int, tuple[RowIndex, RowIndex, Tensor]]:
    """Where the rows of some samples of a batch are that are not stored.

    Args:
        asked: these samples with their tasks.
        rows: their places in the batch.
        layout: how the batch is padded.
        padded: its length.
        batch: how many samples it has.
        reduction: how rows are weighted.

    Returns:
        ``{layer: the rows among these samples alone, the same rows in the batch, their weights [P, R]}``.
    """
    signals = [(place, task, one.attention) for place, (task, one) in enumerate(asked) if one.attention is not None]
    num_queries = max((len(signal.query_R) for _, _, signal in signals), default=0)
    starts = [layout.offset(len(sample.ids_L), padded) for _, sample in asked]
    row_G, found = torch.tensor(rows), {}
    for layer in sorted({layer for _, task, _ in signals for layer in task.heads}):
        members = [member for member in signals if layer in member[1].heads]
        index, weight_PR = _place(layer, members, starts, num_queries, batch, reduction)
        found[layer] = index, RowIndex(row_G[index.sample_P], index.head_P, index.query_PR), weight_PR
    return found


def _place(
    layer: int,
    members: list[tuple[int, MemoryTask, AttentionSignal]],
    starts: list[int],
    num_queries: int,
    batch: int,
    reduction: str,
) -> tuple[RowIndex, Tensor]:
    """The rows of one layer of some samples, and their weights [P, R]."""
    places: list[tuple[int, int]] = []
    queries, weights = [], []
    for number, task, signal in members:
        heads, given = task.heads[layer], len(signal.query_R)
        # Rows that only fill the rectangle point at a real query and weigh nothing.
        room_R = torch.full((num_queries,), starts[number])
        room_R[:given] = signal.query_R + starts[number]
        weight_R = torch.zeros(num_queries)
        weight_R[:given] = _row_weight(reduction, batch, len(heads), given, len(task.heads))
        places += [(number, head) for head in heads]
        queries.append(room_R.expand(len(heads), -1))
        weights.append(weight_R.expand(len(heads), -1))
    sample_P, head_P = torch.tensor(places).T
    return RowIndex(sample_P, head_P, torch.cat(queries)), torch.cat(weights)


def _row_weight(reduction: str, batch: int, heads: int, queries: int, layers: int) -> float:
    if reduction == "sum":
        return 1 / batch
    per_layer = 1 / (batch * heads * queries)
    return per_layer / layers if reduction == "sample_mean" else per_layer

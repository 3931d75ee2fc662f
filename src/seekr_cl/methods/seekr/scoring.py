"""What SEEKR measures on the samples it keeps: attention before and after a task, sensitivity, forgettability.

A kept sample goes through the model three times: forward before its task, forward and backward after it. The rows of
all heads are computed while a layer runs and kept in the compact form of the memory; nothing of all layers' whole rows
exists at once. Samples of similar length go together, padded on the right, and everything is measured on each one's own
tokens, as if it had gone alone. ``padded``, the official code's measure, pads each to the longest sample of the set and
measures the padding too.

Shapes: N tappable layers, H query heads, R query rows, L sequence length (padded where it says so).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seekr_cl.attention import AttentionCall, AttentionTap, InTurn, MeasureSensitivity, RecordEach, RowIndex
from seekr_cl.attention.stored import StoredRows, StoredSignal
from seekr_cl.distributed import collectives
from seekr_cl.heads import normalise_within_layers
from seekr_cl.memory import ReplaySample
from seekr_cl.methods.base import Layout
from seekr_cl.methods.common.logit_distillation import Said, first_position
from seekr_cl.methods.common.sample_passes import PASS_TOKENS, SamplePass, padded, similar_batches

MEASURES = ("valid", "frobenius", "padded")


Encode = Callable[[AttentionCall, RowIndex, Tensor], Any]
"""Makes of a layer's call, index and rows [H, R, L] what is kept of them."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the pass after a task gave for one sample.

    Attributes:
        rows: ``{layer: rows of all heads}`` as ``encode`` made them.
        sensitivity_NH: S of this sample alone, not normalized (eq. 7).
        forgettability_NH: F of this sample alone (eq. 9).
    """

    rows: dict[int, StoredSignal]
    sensitivity_NH: Tensor
    forgettability_NH: Tensor


class Scorer:
    """Runs kept samples through a model with its attention tapped.

    Args:
        tap: the model's tap.
        layout: padding; only ``measure="padded"`` pads as it says.
        measure: ``valid`` averages squares over real, causal entries; ``frobenius`` takes the norm over the same
            entries (eq. 7 and 9); ``padded`` averages over the whole padded square (official code).
        samples: the set to be scored; the padded length comes from it.
        batch_size: how many of the longest sample fit into a backward pass; ``None``: as many as ``PASS_TOKENS`` gives.

    Attributes:
        batches: places of samples that go through the model together, the same in every process.
    """

    def __init__(
        self,
        tap: AttentionTap,
        layout: Layout,
        measure: str,
        samples: list[ReplaySample],
        batch_size: int | None = None,
    ) -> None:
        self.tap = tap
        self.model: PreTrainedModel = tap.model
        self.layout = layout
        self.measure = measure
        lengths = [len(sample.ids_L) for sample in samples]
        self.padded = layout.length(lengths) if samples else 0
        tokens = PASS_TOKENS
        if measure == "padded":
            tokens = 0
        elif batch_size is not None:
            tokens = min(tokens, batch_size * max(lengths, default=0))
        self.batches = similar_batches(lengths, self.model, tokens)

    def before(
        self, samples: Sequence[ReplaySample], queries: Sequence[Tensor], encode: Encode
    ) -> list[dict[int, StoredRows]]:
        """All heads' attention rows at some queries of each sample, before a task is trained.

        Args:
            samples: of one batch.
            queries: where each one's rows are wanted, in the padded sequence under ``padded``.
            encode: what to keep of the rows.
        """
        record = self._record(samples, queries, [encode] * len(samples))
        with self.tap.use(record), torch.no_grad():
            self._pass(samples, [len(sample.ids_L) - 1 for sample in samples])
        return record.rows

    def kept(
        self, samples: Sequence[ReplaySample], queries: Sequence[Tensor], encodes: Sequence[Encode] | None
    ) -> list[tuple[Scored, Said]]:
        """What ``after`` gives where nothing is measured: at most one forward pass, S and F are zero.

        Args:
            samples: as there.
            queries: as there.
            encodes: as there; ``None`` keeps neither rows nor logits.
        """
        rows: list[dict[int, StoredSignal]] = [{} for _ in samples]
        said: list[Said] = [lambda _position_C: torch.empty(0)] * len(samples)
        if encodes is not None:
            record = self._record(samples, queries, encodes)
            with self.tap.use(record), torch.no_grad():
                passed = self._pass(samples, list(map(first_position, samples)))
            rows, said = record.rows, [passed.said(row) for row in range(len(samples))]
        return [(Scored(one, self._table(), self._table()), own) for one, own in zip(rows, said)]

    def after(
        self,
        samples: Sequence[ReplaySample],
        queries: Sequence[Tensor],
        former: Sequence[dict[int, StoredRows]] | None,
        encodes: Sequence[Encode] | None,
        keep_gradients: bool = False,
    ) -> list[tuple[Scored, Said]]:
        """One forward and backward pass at the model right after a task.

        Args:
            samples: of one batch.
            queries: where their rows are wanted, in the padded sequence under ``padded``.
            former: what ``before`` gave for each; None on ranks that only join the collective
                (``collectives.shard_indices``).
            encodes: what to keep of each one's rows; ``None`` keeps nothing.
            keep_gradients: leave the weights' gradients in ``.grad``, as the official code does by omission;
                otherwise they are not even computed.

        Returns:
            for each sample what was measured, and what gives the logits of its positions from ``first_position`` on,
            which may be too large to be held for many samples.
        """
        moved = [self._table() for _ in samples]
        nothing: list[None] = [None] * len(samples)
        compares = [
            partial(self._compare, *one)
            for one in zip(moved, queries, former or nothing, encodes or nothing, strict=True)
        ]
        record = self._record(samples, queries, compares)
        sensitivity = MeasureSensitivity(self._real(samples))
        frozen = [] if keep_gradients else [p for p in self.model.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            with self.tap.use(InTurn(record, sensitivity)), torch.enable_grad():
                passed = self._pass(samples, list(map(first_position, samples)))
                # Samples do not see each other, so that the sum's gradient at one of them is that of its own loss.
                passed.backward([sample.spans for sample in samples])
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        sensitivities = self._sensitivity(sensitivity, len(samples))
        scored = map(Scored, record.rows, sensitivities, moved)
        return [(one, passed.said(row)) for row, one in enumerate(scored)]

    def _compare(
        self,
        moved_NH: Tensor,
        query_R: Tensor,
        former: dict[int, StoredRows] | None,
        encode: Encode | None,
        call: AttentionCall,
        index: RowIndex,
        rows_HRL: Tensor,
    ) -> StoredSignal | None:
        """Notes how far each head of a layer has moved, and makes of its rows what is kept."""
        if former is not None:
            moved_HRL = former[call.layer].moved(call, index, rows_HRL)
            squared_H = torch.linalg.vector_norm(moved_HRL, dim=(1, 2)).square().cpu()
            row = list(self.tap.heads).index(call.layer)
            moved_NH[row, : len(squared_H)] = self._per_entry(squared_H, query_R)
        return None if encode is None else encode(call, index, rows_HRL)

    def _real(self, samples: Sequence[ReplaySample]) -> Tensor | None:
        """Which entries of the batch are tokens; ``None`` where all are measured."""
        if self.measure == "padded":
            return None
        ones = [torch.ones_like(sample.ids_L, dtype=torch.bool) for sample in samples]
        return padded(ones).to(self.model.device)

    def _sensitivity(self, action: MeasureSensitivity, count: int) -> list[Tensor]:
        results = [self._table() for _ in range(count)]
        for row, (layer, heads) in enumerate(self.tap.heads.items()):
            squared_BH = action.squared[layer].cpu()
            norm = self.measure == "frobenius"
            each_BH = squared_BH.sqrt() if norm else squared_BH / action.entries[layer][:, None]
            for result_NH, each_H in zip(results, each_BH):
                result_NH[row, :heads] = each_H
        return results

    def _per_entry(self, squared_H: Tensor, query_R: Tensor) -> Tensor:
        """F from the sum of squared differences."""
        if self.measure == "frobenius":
            return squared_H.sqrt()
        return squared_H / ((query_R + 1).sum() if self.measure == "valid" else len(query_R) * self.padded)

    def _table(self) -> Tensor:
        return torch.zeros(len(self.tap.heads), max(self.tap.heads.values()))

    def _record(self, samples: Sequence[ReplaySample], queries: Sequence[Tensor], keep: Sequence[Encode]) -> RecordEach:
        lengths = [self.padded if self.measure == "padded" else len(sample.ids_L) for sample in samples]
        return RecordEach(self.tap.heads, queries, lengths, keep)

    def _pass(self, samples: Sequence[ReplaySample], firsts: Sequence[int]) -> SamplePass:
        """A forward pass for the logits of each sample's own positions from its ``first`` on."""
        ids = [sample.ids_L for sample in samples]
        if self.measure != "padded":
            return SamplePass(self.model, ids, firsts)
        (sample,), device = samples, self.model.device
        length, start = len(sample.ids_L), self.offset(sample)
        ids_1L = torch.full((1, self.padded), self.layout.pad_id)
        ids_1L[0, start : start + length] = sample.ids_L
        real_L = torch.zeros(self.padded, dtype=torch.bool)
        real_L[start : start + length] = True
        mask = _official_mask(real_L, self.model.dtype).to(device)
        return SamplePass(self.model, ids, firsts, (ids_1L.to(device), mask, start))

    def offset(self, sample: ReplaySample) -> int:
        """Where the sample's first token stands in the pass."""
        length = len(sample.ids_L)
        return self.layout.offset(length, self.padded) if self.measure == "padded" else 0


def measures_of_all(scored: Mapping[int, Scored], length: int) -> list[tuple[Tensor, Tensor]]:
    """S and F of every sample, in their order, from what each process has scored of them."""
    parts = {
        place: {"sensitivity": one.sensitivity_NH, "forgettability": one.forgettability_NH}
        for place, one in scored.items()
    }
    return [(one["sensitivity"], one["forgettability"]) for one in collectives.gather_sharded(parts, length)]


def mean_scores(measures: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """S~ [N, H], normalized within each layer, and F [N, H], both averaged over the samples (eq. 7 and 9).

    Args:
        measures: S and F of each sample.
    """
    sensitivity_NH, forgettability_NH = (torch.stack(one).mean(0) for one in zip(*measures))
    return normalise_within_layers(sensitivity_NH), forgettability_NH


def _official_mask(real_L: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [1, 1, L, L] of transformers 4.31: padding and future both at the dtype's minimum, summed."""
    lowest = torch.finfo(dtype).min
    length = len(real_L)
    future_LL = torch.triu(torch.full((length, length), lowest, dtype=dtype), diagonal=1)
    padding_L = torch.zeros(length, dtype=dtype).masked_fill(~real_L, lowest)
    return (future_LL + padding_L)[None, None]

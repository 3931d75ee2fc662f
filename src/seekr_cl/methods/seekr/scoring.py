"""What SEEKR measures on the samples it keeps: attention before and after a task, sensitivity, forgettability.

A kept sample goes through the model three times: forward before its task, forward and backward after it. The rows of
all heads are computed while a layer runs and kept in the compact form of the memory; nothing of all layers' whole rows
exists at once. Samples go one by one, so a measure never depends on how a batch was padded. ``padded``, the official
code's measure, pads to the longest sample of the set and measures the padding too.

Shapes: N tappable layers, H query heads, R query rows, L sequence length (padded where it says so).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seekr_cl.attention import AttentionCall, AttentionTap, InTurn, MeasureSensitivity, RecordRows, RowIndex
from seekr_cl.attention.stored import StoredRows, StoredSignal
from seekr_cl.distributed import collectives
from seekr_cl.heads import normalise_within_layers
from seekr_cl.memory import ReplaySample
from seekr_cl.methods.base import Layout
from seekr_cl.methods.common.logit_distillation import answer_logits, first_position
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.tasks.collate import labels_of

MEASURES = ("valid", "frobenius", "padded")


Encode = Callable[[AttentionCall, RowIndex, Tensor], Any]
"""Makes of a layer's call, index and rows [H, R, L] what is kept of them."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the pass after a task gave for one sample.

    Attributes:
        rows: ``{layer: rows of all heads}`` as ``encode`` made them.
        sensitivity_NH: S of this sample alone, not normalised (eq. 7).
        forgettability_NH: F of this sample alone (eq. 9).
    """

    rows: dict[int, StoredSignal]
    sensitivity_NH: Tensor
    forgettability_NH: Tensor


class Scorer:
    """Runs kept samples through a model with its attention tapped.

    Args:
        tap: the model's tap.
        layout: padding; only ``measure="padded"`` pads.
        measure: ``valid`` averages squares over real, causal entries; ``frobenius`` takes the norm over the same
            entries (eq. 7 and 9); ``padded`` averages over the whole padded square (official code).
        samples: the set to be scored; the padded length comes from it.
    """

    def __init__(self, tap: AttentionTap, layout: Layout, measure: str, samples: list[ReplaySample]) -> None:
        self.tap = tap
        self.model: PreTrainedModel = tap.model
        self.layout = layout
        self.measure = measure
        self.padded = layout.length([len(sample.ids_L) for sample in samples]) if samples else 0

    def before(self, sample: ReplaySample, query_R: Tensor, encode: Encode) -> dict[int, StoredRows]:
        """All heads' attention rows at some queries of the padded sequence, before a task is trained."""
        record = RecordRows(self._all_heads(query_R), encode)
        with self.tap.use(record), torch.no_grad():
            self._logits(sample, len(sample.ids_L) - 1)
        return record.rows

    def after(
        self,
        sample: ReplaySample,
        query_R: Tensor,
        former: dict[int, StoredRows] | None,
        encode: Encode | None,
        keep_gradients: bool = False,
    ) -> tuple[Scored, Tensor]:
        """One forward and backward pass at the model right after a task.

        Args:
            sample: one of the kept samples.
            query_R: where its rows are wanted, in the padded sequence.
            former: what ``before`` gave for it; None on ranks that only join the collective
                (``collectives.shard_indices``).
            encode: what to keep of the rows; ``None`` keeps nothing.
            keep_gradients: leave the weights' gradients in ``.grad``, as the official code does by omission;
                otherwise they are not even computed.

        Returns:
            what was measured, and the logits [N, V] of the sample's positions from ``first_position`` on, which are
            too large to be held for many samples.
        """
        moved_NH = self._table()
        row_of = {layer: row for row, layer in enumerate(self.tap.heads)}

        def compare_and_keep(call: AttentionCall, index: RowIndex, rows_HRL: Tensor) -> StoredSignal | None:
            if former is None:
                return None if encode is None else encode(call, index, rows_HRL)
            moved_HRL = former[call.layer].moved(call, index, rows_HRL)
            squared_H = torch.linalg.vector_norm(moved_HRL, dim=(1, 2)).square().cpu()
            moved_NH[row_of[call.layer], : len(squared_H)] = self._per_entry(squared_H, query_R)
            return None if encode is None else encode(call, index, rows_HRL)

        record = RecordRows(self._all_heads(query_R), compare_and_keep)
        real = None if self.measure == "padded" else torch.ones_like(sample.ids_L, dtype=torch.bool)[None]
        sensitivity = MeasureSensitivity(None if real is None else real.to(self.model.device))
        frozen = [] if keep_gradients else [p for p in self.model.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        first = first_position(sample)
        try:
            with self.tap.use(InTurn(record, sensitivity)), torch.enable_grad():
                logits_NV = self._logits(sample, first)
                labels_N = torch.tensor(labels_of(sample.ids_L.tolist(), sample.spans)[first:])
                causal_lm_loss(logits_NV[None], labels_N[None].to(logits_NV.device)).backward()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        return Scored(record.rows, self._sensitivity(sensitivity), moved_NH), logits_NV.detach()

    def _sensitivity(self, action: MeasureSensitivity) -> Tensor:
        result_NH = self._table()
        for row, (layer, heads) in enumerate(self.tap.heads.items()):
            squared_H = action.squared[layer][0].cpu()
            norm = self.measure == "frobenius"
            result_NH[row, :heads] = squared_H.sqrt() if norm else squared_H / action.entries[layer]
        return result_NH

    def _per_entry(self, squared_H: Tensor, query_R: Tensor) -> Tensor:
        """F from the sum of squared differences."""
        if self.measure == "frobenius":
            return squared_H.sqrt()
        return squared_H / ((query_R + 1).sum() if self.measure == "valid" else len(query_R) * self.padded)

    def _table(self) -> Tensor:
        return torch.zeros(len(self.tap.heads), max(self.tap.heads.values()))

    def _all_heads(self, query_R: Tensor) -> dict[int, RowIndex]:
        query_R = query_R.to(self.model.device)
        wanted = {}
        for layer, heads in self.tap.heads.items():
            head_P = torch.arange(heads, device=query_R.device)
            wanted[layer] = RowIndex(torch.zeros_like(head_P), head_P, query_R.expand(heads, -1))
        return wanted

    def _logits(self, sample: ReplaySample, first: int) -> Tensor:
        """Logits of the sample's own positions from ``first`` on, [L - first, V]."""
        device, length = self.model.device, len(sample.ids_L)
        if self.measure != "padded":
            return answer_logits(self.model, sample.ids_L[None].to(device), first)
        start = self.offset(sample)
        ids_1L = torch.full((1, self.padded), self.layout.pad_id)
        ids_1L[0, start : start + length] = sample.ids_L
        real_L = torch.zeros(self.padded, dtype=torch.bool)
        real_L[start : start + length] = True
        mask = _official_mask(real_L, self.model.dtype).to(device)
        logits_1LV = self.model(input_ids=ids_1L.to(device), attention_mask=mask, use_cache=False).logits
        return logits_1LV[0, start + first : start + length]

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
    """S~ [N, H], normalised within each layer, and F [N, H], both averaged over the samples (eq. 7 and 9).

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

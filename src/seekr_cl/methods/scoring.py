"""What SEEKR measures on the samples it keeps: attention rows before and after a task, sensitivity, forgettability.

Samples go through the model one by one, so a measure never depends on how a batch was padded. ``official`` puts each
sample on the left of nothing: it pads to the longest sample of the set and measures the padding too.

Shapes: N tappable layers, H query heads, R query rows, L sequence length (padded where it says so).
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seekr_cl.attention import AttentionTap, MeasureSensitivity, RecordRows, RowIndex
from seekr_cl.heads import normalise_within_layers
from seekr_cl.memory import ReplaySample
from seekr_cl.methods.base import Layout
from seekr_cl.methods.losses import causal_lm_loss

MEASURES = ("valid", "frobenius", "padded")


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

    def rows(self, sample: ReplaySample, query_R: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """All heads' attention rows at some queries, with the logits of the same pass.

        Returns:
            ``{layer: [H, R, L']}`` and logits [L', V]; L' is the padded length under ``padded``, else the sample's.
        """
        query_R = query_R.to(self.model.device)
        wanted = {}
        for layer, heads in self.tap.heads.items():
            head_P = torch.arange(heads, device=query_R.device)
            wanted[layer] = RowIndex(torch.zeros_like(head_P), head_P, query_R.expand(heads, -1))
        record = RecordRows(wanted)
        with self.tap.use(record), torch.no_grad():
            logits_1LV = self.model(**self._inputs(sample), use_cache=False).logits
        return {layer: rows.cpu() for layer, rows in record.rows.items()}, logits_1LV[0].cpu()

    def sensitivity(self, samples: list[ReplaySample], keep_gradients: bool = False) -> Tensor:
        """S~ [N, H]: each head's mean sensitivity over the samples, normalised within its layer (eq. 7).

        Args:
            samples: at the model right after their task.
            keep_gradients: leave the weights' gradients in ``.grad``, as the official code does by omission;
                otherwise they are not even computed.
        """
        total_NH = torch.zeros(len(self.tap.heads), max(self.tap.heads.values()))
        frozen = [] if keep_gradients else [p for p in self.model.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        # With every weight frozen, only the embedding's output makes the activations require gradients.
        handle = self.model.get_input_embeddings().register_forward_hook(
            lambda _module, _args, output: output if output.requires_grad else output.requires_grad_()
        )
        try:
            for sample in samples:
                total_NH += self._squared_gradients(sample)
        finally:
            handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)
        return normalise_within_layers(total_NH / max(1, len(samples)))

    def _squared_gradients(self, sample: ReplaySample) -> Tensor:
        inputs = self._inputs(sample)
        padded = self.measure == "padded"
        action = MeasureSensitivity(None if padded else torch.ones_like(inputs["input_ids"], dtype=torch.bool))
        with self.tap.use(action), torch.enable_grad():
            logits_1LV = self.model(**inputs, use_cache=False).logits
            causal_lm_loss(logits_1LV, self._labels(sample)).backward()
        result_NH = torch.zeros(len(self.tap.heads), max(self.tap.heads.values()))
        for row, (layer, heads) in enumerate(self.tap.heads.items()):
            squared_H = action.squared[layer][0].cpu()
            if self.measure == "frobenius":
                result_NH[row, :heads] = squared_H.sqrt()
            else:
                result_NH[row, :heads] = squared_H / action.entries[layer]
        return result_NH

    def forgettability(
        self, before: list[dict[int, Tensor]], after: list[dict[int, Tensor]], queries: list[Tensor]
    ) -> Tensor:
        """F [N, H]: how much training moved each head's rows on the samples, averaged over them (eq. 9).

        Args:
            before: for each sample, ``{layer: [H, R, L']}`` at the model before the task.
            after: the same rows after it.
            queries: for each sample the query positions [R] the rows belong to.
        """
        total_NH = torch.zeros(len(self.tap.heads), max(self.tap.heads.values()))
        for old, new, query_R in zip(before, after, queries):
            for row, (layer, heads) in enumerate(self.tap.heads.items()):
                squared_H = (old[layer] - new[layer]).square().sum((1, 2))
                if self.measure == "frobenius":
                    total_NH[row, :heads] += squared_H.sqrt()
                elif self.measure == "valid":
                    total_NH[row, :heads] += squared_H / (query_R + 1).sum()
                else:
                    total_NH[row, :heads] += squared_H / (len(query_R) * self.padded)
        return total_NH / max(1, len(before))

    def offset(self, sample: ReplaySample) -> int:
        """Where the sample's first token stands in the pass."""
        length = len(sample.ids_L)
        return self.layout.offset(length, self.padded) if self.measure == "padded" else 0

    def _inputs(self, sample: ReplaySample) -> dict[str, Tensor]:
        device = self.model.device
        if self.measure != "padded":
            return {"input_ids": sample.ids_L[None].to(device)}
        ids_1L = torch.full((1, self.padded), self.layout.pad_id)
        start = self.offset(sample)
        ids_1L[0, start : start + len(sample.ids_L)] = sample.ids_L
        real_L = torch.zeros(self.padded, dtype=torch.bool)
        real_L[start : start + len(sample.ids_L)] = True
        return {"input_ids": ids_1L.to(device), "attention_mask": _official_mask(real_L, self.model.dtype).to(device)}

    def _labels(self, sample: ReplaySample) -> Tensor:
        start = self.offset(sample)
        labels_1L = torch.full((1, self.padded if self.measure == "padded" else len(sample.ids_L)), -100)
        first = start + sample.completion_start
        labels_1L[0, first : start + len(sample.ids_L)] = sample.ids_L[sample.completion_start :]
        return labels_1L.to(self.model.device)


def _official_mask(real_L: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [1, 1, L, L] of transformers 4.31: padding and future both at the dtype's minimum, summed."""
    lowest = torch.finfo(dtype).min
    length = len(real_L)
    future_LL = torch.triu(torch.full((length, length), lowest, dtype=dtype), diagonal=1)
    padding_L = torch.zeros(length, dtype=dtype).masked_fill(~real_L, lowest)
    return (future_LL + padding_L)[None, None]

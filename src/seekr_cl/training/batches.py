"""The micro-batches of one task as a dataset: new examples and replay samples, padded, with their signals."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods import Layout, Method
from seekr_cl.methods.base import Batch
from seekr_cl.tasks import Encoded, collate
from seekr_cl.training.schedule import MicroBatch


class ScheduledBatches(Dataset[dict[str, Any]]):
    """Item i is the i-th micro-batch, ``{"new": batch}``, ``{"replay": batch}`` or both when joint.

    A batch holds ``input_ids``, ``attention_mask`` and ``labels`` [B, L]; a replay batch also what the method adds.
    """

    def __init__(
        self,
        schedule: list[MicroBatch],
        new: list[Encoded],
        replay: Sequence[tuple[MemoryTask, ReplaySample]],
        method: Method,
        layout: Layout,
    ) -> None:
        self.schedule, self.new, self.replay, self.method, self.layout = schedule, new, replay, method, layout

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> dict[str, Any]:
        micro = self.schedule[index]
        parts: dict[str, Any] = {}
        if micro.new:
            parts["new"] = self._pad([self.new[i] for i in micro.new])
        if micro.replay:
            picked = [self.replay[i] for i in micro.replay]
            batch = self._pad([as_encoded(sample) for _, sample in picked])
            parts["replay"] = batch | self.method.replay_extras(picked, batch["input_ids"].shape[1])
        return parts

    def _pad(self, encoded: list[Encoded]) -> Batch:
        batch = dict(collate(encoded, self.layout.pad_id, self.layout.side, self.layout.multiple))
        for row, item in enumerate(encoded):
            if item.completion_start == 0:
                # Nothing stands before a sample's first token but padding, whose output differs between backends.
                batch["labels"][row, self.layout.offset(len(item.input_ids), batch["labels"].shape[1])] = -100
        return batch


def as_encoded(sample: ReplaySample) -> Encoded:
    """A kept sample as the encoder would give it."""
    return Encoded(sample.ids_L.tolist(), sample.completion_start, 0)

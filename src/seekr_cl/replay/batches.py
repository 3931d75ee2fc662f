"""The micro-batches of one task as a dataset: new examples and replay samples, padded, with their signals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods import Layout, Method
from seekr_cl.methods.base import Batch
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.tasks import Encoded, collate
from seekr_cl.tasks.collate import IGNORE


class ScheduledBatches(Dataset[dict[str, Any]]):
    """Item i is the i-th micro-batch, ``{"new": batch}``, ``{"replay": batch}`` or both when joint.

    A batch holds ``input_ids``, ``attention_mask`` and ``labels`` [B, L]; a replay batch also what the method adds.
    Where several processes train together, each holds every world_size-th sample of a micro-batch, and reads no other.
    ``tokens`` of a new batch counts the answer tokens of the whole micro-batch; ``example_B`` are places in ``new``. A
    micro-batch with fewer samples than there are processes leaves some without; they get one that is another's, marked
    ``filler``, which counts nothing.

    Args:
        schedule: micro-batches of all processes together.
        new: the task's examples.
        replay: the memory's samples.
        method: what it adds to a replay batch.
        layout: how a batch is padded.
        share: this process's number and how many there are.
    """

    def __init__(
        self,
        schedule: list[MicroBatch],
        new: list[Encoded],
        replay: Sequence[tuple[MemoryTask, ReplaySample]],
        method: Method,
        layout: Layout,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.schedule, self.new, self.replay, self.method, self.layout = schedule, new, replay, method, layout
        self.share = share

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.made(self.schedule[index])

    def made(self, micro: MicroBatch) -> dict[str, Any]:
        """The tensors of a micro-batch, in the schedule or not."""
        parts: dict[str, Any] = {}
        if micro.new:
            tokens = sum(self.new[i].learnable for i in micro.new)
            mine = self._mine(micro.new)
            parts["new"] = self._pad([self.new[i] for i in mine or micro.new[:1]])
            parts["new"] |= {"tokens": tokens, "filler": not mine, "example_B": torch.tensor(mine or micro.new[:1])}
        if micro.replay:
            mine = self._mine(micro.replay)
            picked = [self.replay[i] for i in mine or micro.replay[:1]]
            batch = self._pad([sample.encoded for _, sample in picked])
            extras = self.method.collate_replay(picked, batch["input_ids"].shape[1])
            parts["replay"] = batch | extras | {"filler": not mine}
        return parts

    def _mine(self, indices: tuple[int, ...]) -> tuple[int, ...]:
        return indices[self.share[0] :: self.share[1]]

    def _pad(self, encoded: list[Encoded]) -> Batch:
        batch = dict(collate(encoded, self.layout.pad_id, self.layout.side, self.layout.multiple))
        for row, item in enumerate(encoded):
            if item.spans[0][0] == 0:
                # Nothing stands before a sample's first token but padding, whose output differs between backends.
                batch["labels"][row, self.layout.offset(len(item.input_ids), batch["labels"].shape[1])] = IGNORE
        return batch

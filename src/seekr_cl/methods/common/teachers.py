"""What the earlier model says of a replay batch, read from the memory.

A teacher has two halves: ``collate`` runs in the data loader and makes of picked samples what a batch carries,
``answer`` runs in the step and gives what the losses compare with. Signals that were stored are the answer already;
adapters that have to be asked for it are in ``adapter_teacher``.
"""

from dataclasses import dataclass

from seekr_cl.attention import RowTarget
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Layout
from seekr_cl.methods.common.attention_targets import row_targets
from seekr_cl.methods.common.logit_distillation import pad_logits


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

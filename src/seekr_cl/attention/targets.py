"""What attention rows should be: which rows, the teacher's, and their weights.

Shapes: P (sample, head) pairs, R query rows per pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seekr_cl.attention.call import RowIndex
from seekr_cl.attention.teacher_rows import TeacherRows


@dataclass(frozen=True, slots=True)
class RowTarget:
    """What some rows should be; those of several layers lie behind one another.

    Attributes:
        index: which rows.
        teacher: the teacher's rows, P x R of them.
        weight_PR: each row's weight in its layer's loss; zero for rows that only fill the rectangle.
        layers: which of the pairs are a layer's; empty where they are all of one layer that is known otherwise.
    """

    index: RowIndex
    teacher: TeacherRows
    weight_PR: Tensor
    layers: Mapping[int, slice] = field(default_factory=dict)

    def tile(self, pairs: slice) -> "RowTarget":
        """The part of some of the pairs, which are of one layer."""
        return RowTarget(self.index[pairs], self.teacher.tile(pairs), self.weight_PR[pairs])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RowTarget":
        """The same on another device; data loaders call this."""
        return RowTarget(
            self.index.to(device, non_blocking=non_blocking),
            self.teacher.to(device, non_blocking=non_blocking),
            self.weight_PR.to(device, non_blocking=non_blocking),
            self.layers,
        )

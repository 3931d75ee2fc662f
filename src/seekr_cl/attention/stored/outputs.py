"""A teacher's head outputs at the chosen queries, from which their distances are computed too.

Shapes: M heads, R query rows, L tokens of the sample, D head size, P (sample, head) pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.stored.codec import Stored, decode_vectors, encode_vectors, fits


@dataclass(frozen=True, slots=True)
class OutputRows:
    """A teacher's head outputs in a batch.

    Attributes:
        out_PRD: outputs at the rows; zero where rows only fill the rectangle.
    """

    out_PRD: Tensor

    def tile(self, pairs: slice | Tensor) -> "OutputRows":
        """Those of some of the pairs, or of pairs in an order."""
        return OutputRows(self.out_PRD[pairs])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "OutputRows":
        """The same on another device."""
        return OutputRows(self.out_PRD.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, slots=True)
class StoredOutputs(Stored):
    """What heads gave at some queries.

    Attributes:
        out_MRD: outputs, as floats or as int8 in units of ``out_step_MR``.
        out_step_MR: size of a step, with int8.
    """

    out_MRD: Tensor
    out_step_MR: Tensor | None = None

    @classmethod
    def encode(
        cls, call: AttentionCall, index: RowIndex, rows_MRL: Tensor, dtype: str, start: int, length: int
    ) -> Self:
        """From one sample's attention rows over its own tokens, the ``length`` from ``start`` on, and its values."""
        v_MLD = call.v_BKLD[0, index.head_P // call.group, start : start + length].detach()
        return cls(*encode_vectors(rows_MRL @ v_MLD.to(rows_MRL.dtype), dtype))

    def decode(self) -> Tensor:
        """Float32 outputs [M, R, D]."""
        return decode_vectors(self.out_MRD, self.out_step_MR)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The heads of all parts behind one another; of layers with smaller heads, zeros fill the room."""
        size = max(part.out_MRD.shape[2] for part in parts)
        out_MRD = torch.cat([F.pad(part.out_MRD, (0, size - part.out_MRD.shape[2])) for part in parts])
        steps = [part.out_step_MR for part in parts if part.out_step_MR is not None]
        return cls(out_MRD, torch.cat(steps) if steps else None)

    def check(self, heads: int, queries: int, length: int) -> bool:
        """Whether the shapes fit each other."""
        return (
            self.out_MRD.dim() == 3
            and self.out_MRD.shape[:2] == (heads, queries)
            and fits(self.out_step_MR, (heads, queries))
        )

    @staticmethod
    def collate(parts: Sequence["StoredOutputs"], starts: list[int], num_queries: int, padded: int) -> OutputRows:
        """The outputs of a batch, sample after sample."""
        decoded = [part.decode() for part in parts]
        return OutputRows(torch.cat([F.pad(out_MRD, (0, 0, 0, num_queries - out_MRD.shape[1])) for out_MRD in decoded]))

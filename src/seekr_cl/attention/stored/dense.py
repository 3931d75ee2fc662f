"""Whole teacher rows.

Shapes: M heads, R query rows, L tokens of the sample (of the padded batch in ``DenseRows``), P (sample, head) pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.stored.codec import (
    Stored,
    decode_probabilities,
    encode_probabilities,
    fits,
    mass_or_ones,
    missing_mass,
)
from seekr_cl.attention.teacher_rows import Comparison, compare_whole


@dataclass(frozen=True, slots=True)
class DenseRows:
    """Whole rows.

    Attributes:
        prob_PRL: probabilities; zero for keys beyond a sample's own length.
    """

    prob_PRL: Tensor

    def tile(self, pairs: slice | Tensor) -> "DenseRows":
        """The rows of some of the pairs, or of pairs in an order."""
        return DenseRows(self.prob_PRL[pairs])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DenseRows":
        """The same on another device."""
        return DenseRows(self.prob_PRL.to(device, non_blocking=non_blocking))

    def compare(self, logp_PRL: Tensor, call: AttentionCall, index: RowIndex, eps: float) -> Comparison:
        """Every key is a bucket."""
        return compare_whole(self.prob_PRL.to(logp_PRL.dtype), logp_PRL, eps)


@dataclass(frozen=True, slots=True)
class StoredDense(Stored):
    """Whole rows.

    Attributes:
        code_MRL: encoded probabilities.
        mass_MR: what the rows sum to, where a sink keeps it from being one; otherwise ``None``.
    """

    code_MRL: Tensor
    mass_MR: Tensor | None = None

    @classmethod
    def encode(cls, rows_MRL: Tensor, dtype: str) -> Self:
        """From probabilities in float32."""
        return cls(encode_probabilities(rows_MRL, dtype), missing_mass(rows_MRL, dtype))

    def decode(self) -> Tensor:
        """Float32 probabilities [M, R, L]."""
        return decode_probabilities(self.code_MRL, mass_or_ones(self.mass_MR, self.code_MRL))

    def moved(self, call: AttentionCall, index: RowIndex, now_MRL: Tensor) -> Tensor:
        """``now_MRL`` minus the stored rows."""
        return now_MRL - self.to(now_MRL.device).decode()

    def check(self, heads: int, queries: int, length: int) -> bool:
        """Whether the shapes fit each other."""
        shape = (heads, queries, length)
        return self.code_MRL.shape == shape and fits(self.mass_MR, shape[:2])

    @staticmethod
    def collate(parts: Sequence["StoredDense"], starts: list[int], num_queries: int, padded: int) -> DenseRows:
        """The rows of a batch, sample after sample."""
        rooms = []
        for part, start in zip(parts, starts):
            rows_MRL = part.decode()
            room = (start, padded - start - rows_MRL.shape[2], 0, num_queries - rows_MRL.shape[1])
            rooms.append(F.pad(rows_MRL, room))
        return DenseRows(torch.cat(rooms))

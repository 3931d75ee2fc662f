"""Teacher rows as the queries and keys they are computed from.

Shapes: M heads, R query rows, L tokens of the sample, D head size, G key/value heads that the M heads use; in
``FactorRows`` P (sample, head) pairs, the padded length L, and (sample, key/value head) groups G.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.rows import RowScores, row_probabilities, row_scores
from seekr_cl.attention.stored.codec import Stored, decode_vectors, encode_vectors, fits, narrow_index
from seekr_cl.attention.teacher_rows import Comparison, compare_whole


@dataclass(frozen=True, slots=True)
class FactorRows:
    """The teacher's own queries and keys; its rows are computed again from them, masked like the student's.

    Attributes:
        q_PRD: queries of the rows, after rotary embedding.
        k_GLD: keys of each (sample, key/value head) that some pair uses, in the padded sequence.
        group_P: which of them a pair uses.
        sink_P: the teacher's sinks, if the model has them.
    """

    q_PRD: Tensor
    k_GLD: Tensor
    group_P: Tensor
    sink_P: Tensor | None = None

    def tile(self, pairs: slice | Tensor) -> "FactorRows":
        """The rows of some of the pairs; the keys stay shared."""
        sink_P = None if self.sink_P is None else self.sink_P[pairs]
        return FactorRows(self.q_PRD[pairs], self.k_GLD, self.group_P[pairs], sink_P)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "FactorRows":
        """The same on another device."""
        sink_P = None if self.sink_P is None else self.sink_P.to(device, non_blocking=non_blocking)
        return FactorRows(
            self.q_PRD.to(device, non_blocking=non_blocking),
            self.k_GLD.to(device, non_blocking=non_blocking),
            self.group_P.to(device, non_blocking=non_blocking),
            sink_P,
        )

    def compare(self, logp_PRL: Tensor, call: AttentionCall, index: RowIndex, eps: float) -> Comparison:
        """Every key is a bucket."""
        return compare_whole(row_probabilities(self.scores(call, index, logp_PRL.dtype)), logp_PRL, eps)

    def scores(self, call: AttentionCall, index: RowIndex, dtype: torch.dtype) -> RowScores:
        """The teacher's scores, scaled, capped and masked as in the student's ``call``."""
        sink_P = None if self.sink_P is None else self.sink_P.to(dtype)
        return row_scores(self.q_PRD.to(dtype), self.k_GLD[self.group_P].to(dtype), sink_P, call, index)


@dataclass(frozen=True, slots=True)
class StoredFactors(Stored):
    """Queries and keys after rotary embedding.

    Attributes:
        q_MRD: queries, as floats or as int8 in units of ``q_step_MR``.
        k_GLD: keys, as floats or as int8 in units of ``k_step_GL``.
        group_M: which of the G key heads each head uses.
        q_step_MR: size of a step, with int8.
        k_step_GL: size of a step, with int8.
        sink_M: the heads' sinks, if the model has them.
    """

    q_MRD: Tensor
    k_GLD: Tensor
    group_M: Tensor
    q_step_MR: Tensor | None = None
    k_step_GL: Tensor | None = None
    sink_M: Tensor | None = None

    @classmethod
    def encode(
        cls, call: AttentionCall, index: RowIndex, dtype: str, start: int = 0, length: int | None = None
    ) -> Self:
        """From the queries and keys of one sample's call; its tokens are the ``length`` from ``start`` on."""
        own = slice(start, None if length is None else start + length)
        used_G, group_M = torch.unique(index.head_P // call.group, return_inverse=True)
        q_MRD, q_step_MR = encode_vectors(call.q_BHLD[0, index.head_P[:, None], index.query_PR].detach(), dtype)
        k_GLD, k_step_GL = encode_vectors(call.k_BKLD[0, used_G, own].detach(), dtype)
        sink_M = None if call.sink_H is None else call.sink_H[index.head_P].detach().float()
        return cls(q_MRD, k_GLD, narrow_index(group_M, len(used_G)), q_step_MR, k_step_GL, sink_M)

    def moved(self, call: AttentionCall, index: RowIndex, now_MRL: Tensor) -> Tensor:
        """``now_MRL`` minus the rows computed from the factors, scaled and masked as in ``call``."""
        return now_MRL - row_probabilities(self._teacher().to(now_MRL.device).scores(call, index, now_MRL.dtype))

    def _teacher(self) -> FactorRows:
        q_MRD, k_GLD = decode_vectors(self.q_MRD, self.q_step_MR), decode_vectors(self.k_GLD, self.k_step_GL)
        return FactorRows(q_MRD, k_GLD, self.group_M.long(), self.sink_M)

    def pick(self, heads: list[int]) -> Self:
        """Some of the heads, in that order, with the keys they use."""
        used_G, group_M = torch.unique(self.group_M.long()[heads], return_inverse=True)
        return type(self)(
            self.q_MRD[heads],
            self.k_GLD[used_G],
            narrow_index(group_M, len(used_G)),
            None if self.q_step_MR is None else self.q_step_MR[heads],
            None if self.k_step_GL is None else self.k_step_GL[used_G],
            None if self.sink_M is None else self.sink_M[heads],
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The heads of all parts behind one another."""
        # Layers may have heads of different sizes; zeros behind a vector change no product.
        size = max(part.q_MRD.shape[2] for part in parts)
        firsts = torch.tensor([0] + [len(part.k_GLD) for part in parts]).cumsum(0)

        def cat(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else torch.cat(found)

        group_M = torch.cat([part.group_M.long() + first for part, first in zip(parts, firsts)])
        return cls(
            torch.cat([F.pad(part.q_MRD, (0, size - part.q_MRD.shape[2])) for part in parts]),
            torch.cat([F.pad(part.k_GLD, (0, size - part.k_GLD.shape[2])) for part in parts]),
            narrow_index(group_M, int(firsts[-1])),
            cat("q_step_MR"),
            cat("k_step_GL"),
            cat("sink_M"),
        )

    def check(self, heads: int, queries: int, length: int) -> bool:
        """Whether the shapes fit each other and every group is there."""
        groups = self.k_GLD.shape[0]
        return (
            self.q_MRD.dim() == self.k_GLD.dim() == 3
            and self.q_MRD.shape[:2] == (heads, queries)
            and self.k_GLD.shape[1:] == (length, self.q_MRD.shape[2])
            and self.group_M.shape == (heads,)
            and bool(((self.group_M.long() >= 0) & (self.group_M.long() < groups)).all())
            and fits(self.q_step_MR, (heads, queries))
            and fits(self.k_step_GL, (groups, length))
            and fits(self.sink_M, (heads,))
        )

    @staticmethod
    def collate(parts: Sequence["StoredFactors"], starts: list[int], num_queries: int, padded: int) -> FactorRows:
        """The factors of a batch, sample after sample."""
        teachers, first = [part._teacher() for part in parts], 0
        q, k, group, sink = [], [], [], []
        for teacher, start in zip(teachers, starts):
            length = teacher.k_GLD.shape[1]
            q.append(F.pad(teacher.q_PRD, (0, 0, 0, num_queries - teacher.q_PRD.shape[1])))
            k.append(F.pad(teacher.k_GLD, (0, 0, start, padded - start - length)))
            group.append(teacher.group_P + first)
            first += len(teacher.k_GLD)
            if teacher.sink_P is not None:
                sink.append(teacher.sink_P)
        return FactorRows(torch.cat(q), torch.cat(k), torch.cat(group), torch.cat(sink) if sink else None)

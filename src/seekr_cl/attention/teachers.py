"""A teacher's attention rows as a loss gets them: whole, as their largest entries, or as the q and k they come from.

Each kind compares itself with the student's rows one tile at a time. The divergence is KL(T, p) over *buckets*: an
entry the teacher kept is a bucket of its own, everything it did not keep is one bucket, and where the model has sinks
the sink is one more. What is kept is exact; merging entries into a bucket can only lower a divergence.

Shapes: P (sample, head) pairs, R query rows per pair, L sequence length, K kept entries of a row, D head size,
G (sample, key/value head) groups.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.rows import RowScores, row_probabilities, row_scores


@dataclass(frozen=True, slots=True)
class Comparison:
    """A tile's divergence without the sink's part.

    Attributes:
        kl_PR: sum over the buckets of T (log T - log p).
        pull_PRL: T p / (p + eps), with a bucket's mass spread over its entries as the student spreads it. The gradient
            of ``kl_PR`` with respect to the scores is p times the row's sum of ``pull_PRL`` minus ``pull_PRL``.
        mass_PR: the teacher's probability on keys; less than one where a sink took some.
    """

    kl_PR: Tensor
    pull_PRL: Tensor
    mass_PR: Tensor


class TeacherRows(Protocol):
    """One layer's teacher rows, [P, R] of them."""

    def tile(self, pairs: slice) -> Self:
        """The rows of some of the pairs."""
        ...

    def compare(self, logp_PRL: Tensor, call: AttentionCall, index: RowIndex, eps: float) -> Comparison:
        """Divergence from the student's log-probabilities; ``call`` and ``index`` are the student's."""
        ...

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        ...


@dataclass(frozen=True, slots=True)
class DenseRows:
    """Whole rows.

    Attributes:
        prob_PRL: probabilities; zero for keys beyond a sample's own length.
    """

    prob_PRL: Tensor

    def tile(self, pairs: slice) -> "DenseRows":
        """The rows of some of the pairs."""
        return DenseRows(self.prob_PRL[pairs])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DenseRows":
        """The same on another device."""
        return DenseRows(self.prob_PRL.to(device, non_blocking=non_blocking))

    def compare(self, logp_PRL: Tensor, call: AttentionCall, index: RowIndex, eps: float) -> Comparison:
        """Every key is a bucket."""
        return _compare_whole(self.prob_PRL.to(logp_PRL.dtype), logp_PRL, eps)


@dataclass(frozen=True, slots=True)
class TopKRows:
    """Some entries of each row, and the mass of all others together.

    Attributes:
        prob_PRK: probabilities of the kept keys; zero in surplus places.
        key_PRK: their positions in the padded sequence. Surplus places repeat a kept key.
        tail_PR: what all other keys got, compared as one bucket; zero where kept keys stand for the others.
        offset_PR: added to each row's divergence: what the entropy of the kept entries misses where they were drawn
            from more; ``None`` is zero.
    """

    prob_PRK: Tensor
    key_PRK: Tensor
    tail_PR: Tensor
    offset_PR: Tensor | None = None

    def tile(self, pairs: slice) -> "TopKRows":
        """The rows of some of the pairs."""
        offset_PR = None if self.offset_PR is None else self.offset_PR[pairs]
        return TopKRows(self.prob_PRK[pairs], self.key_PRK[pairs], self.tail_PR[pairs], offset_PR)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TopKRows":
        """The same on another device."""
        return TopKRows(
            self.prob_PRK.to(device, non_blocking=non_blocking),
            self.key_PRK.to(device, non_blocking=non_blocking),
            self.tail_PR.to(device, non_blocking=non_blocking),
            None if self.offset_PR is None else self.offset_PR.to(device, non_blocking=non_blocking),
        )

    def compare(self, logp_PRL: Tensor, call: AttentionCall, index: RowIndex, eps: float) -> Comparison:
        """K buckets of one key and one of all the others."""
        T_PRK, tail_PR = self.prob_PRK.to(logp_PRL.dtype), self.tail_PR.to(logp_PRL.dtype)
        logp_PRK = logp_PRL.gather(-1, self.key_PRK)
        # The others' mass is summed up rather than taken as 1 - kept, which would cancel where they have little.
        p_PRL = logp_PRL.exp().scatter_(-1, self.key_PRK, 0.0)
        others_PR = p_PRL.sum(-1)
        # A teacher's tail that this row has no keys for (its kept entries are all there are) is rounding, not mass.
        tail_PR = torch.where(others_PR > 0, tail_PR, 0.0)
        log_others_PR = (others_PR + eps).clamp_min(torch.finfo(others_PR.dtype).tiny).log()
        kl_PRK = torch.special.xlogy(T_PRK, T_PRK) - T_PRK * _log(logp_PRK, eps)
        kl_PR = kl_PRK.sum(-1) + torch.special.xlogy(tail_PR, tail_PR) - tail_PR * log_others_PR
        if self.offset_PR is not None:
            kl_PR = kl_PR + self.offset_PR
        spread_PR = torch.where(others_PR > 0, tail_PR / (others_PR + eps), 0.0)
        pull_PRL = p_PRL.mul_(spread_PR[..., None])
        if eps:
            p_PRK = logp_PRK.exp()
            pull_PRL.scatter_add_(-1, self.key_PRK, T_PRK * p_PRK / (p_PRK + eps))
        else:
            pull_PRL.scatter_add_(-1, self.key_PRK, T_PRK)
        return Comparison(kl_PR, pull_PRL, T_PRK.sum(-1) + tail_PR)


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

    def tile(self, pairs: slice) -> "FactorRows":
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
        return _compare_whole(row_probabilities(self.scores(call, index, logp_PRL.dtype)), logp_PRL, eps)

    def scores(self, call: AttentionCall, index: RowIndex, dtype: torch.dtype) -> RowScores:
        """The teacher's scores, scaled, capped and masked as in the student's ``call``."""
        sink_P = None if self.sink_P is None else self.sink_P.to(dtype)
        return row_scores(self.q_PRD.to(dtype), self.k_GLD[self.group_P].to(dtype), sink_P, call, index)


def _compare_whole(T_PRL: Tensor, logp_PRL: Tensor, eps: float) -> Comparison:
    # Entry by entry, not as a difference of large sums, which would drown a small divergence in rounding.
    kl_PR = (torch.special.xlogy(T_PRL, T_PRL) - T_PRL * _log(logp_PRL, eps)).sum(-1)
    mass_PR = T_PRL.sum(-1)
    if not eps:
        return Comparison(kl_PR, T_PRL, mass_PR)
    p_PRL = logp_PRL.exp()
    return Comparison(kl_PR, T_PRL * p_PRL / (p_PRL + eps), mass_PR)


def _log(logp: Tensor, eps: float) -> Tensor:
    return torch.log(logp.exp() + eps) if eps else logp

"""A teacher's attention rows as a loss gets them: whole, as their largest entries, or as the q and k they come from.

Each kind compares itself with the student's rows one tile at a time. The divergence is KL(T, p) over *buckets*: an
entry the teacher kept is a bucket of its own, everything it did not keep is one bucket, and where the model has sinks
the sink is one more. What is kept is exact; merging entries into a bucket can only lower a divergence.

The kinds themselves lie beside the forms they are stored in (``stored``).

Shapes: P (sample, head) pairs, R query rows per pair, L sequence length.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex


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
    """A teacher's rows, [P, R] of them."""

    def tile(self, pairs: slice | Tensor) -> Self:
        """The rows of some of the pairs, or of pairs in an order."""
        ...

    def compare(self, logp_PRL: Tensor, call: AttentionCall, index: RowIndex, eps: float) -> Comparison:
        """Divergence from the student's log-probabilities; ``call`` and ``index`` are the student's."""
        ...

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        ...


def compare_whole(T_PRL: Tensor, logp_PRL: Tensor, eps: float) -> Comparison:
    """Divergence where every key is a bucket, from the teacher's and the student's rows."""
    # Entry by entry, not as a difference of large sums, which would drown a small divergence in rounding.
    kl_PR = (torch.special.xlogy(T_PRL, T_PRL) - T_PRL * (torch.log(logp_PRL.exp() + eps) if eps else logp_PRL)).sum(-1)
    mass_PR = T_PRL.sum(-1)
    if not eps:
        return Comparison(kl_PR, T_PRL, mass_PR)
    p_PRL = logp_PRL.exp()
    return Comparison(kl_PR, T_PRL * p_PRL / (p_PRL + eps), mass_PR)

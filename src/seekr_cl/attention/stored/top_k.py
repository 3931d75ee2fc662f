"""Teacher rows as K entries each, the rest as one bucket or sampled.

Shapes: M heads, R query rows, L tokens of the sample (of the padded batch in ``TopKRows``), K kept entries,
P (sample, head) pairs.
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
    narrow_index,
    small_float,
)
from seekr_cl.attention.teacher_rows import Comparison


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

    def tile(self, pairs: slice | Tensor) -> "TopKRows":
        """The rows of some of the pairs, or of pairs in an order."""
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
        logq_PRK = torch.log(logp_PRK.exp() + eps) if eps else logp_PRK
        kl_PRK = torch.special.xlogy(T_PRK, T_PRK) - T_PRK * logq_PRK
        kl_PR = kl_PRK.sum(-1) + torch.special.xlogy(tail_PR, tail_PR) - tail_PR * log_others_PR
        if self.offset_PR is not None:
            kl_PR = kl_PR + self.offset_PR
        spread_PR = torch.where(others_PR > 0, tail_PR / (others_PR + eps), 0.0)
        pull_PRL = p_PRL.mul_(spread_PR[..., None])
        pull_PRL.scatter_add_(-1, self.key_PRK, T_PRK * (logp_PRK - logq_PRK).exp() if eps else T_PRK)
        return Comparison(kl_PR, pull_PRL, T_PRK.sum(-1) + tail_PR)


@dataclass(frozen=True, slots=True)
class StoredTopK(Stored):
    """K entries of each row and the mass of the others.

    Attributes:
        code_MRK: encoded probabilities. Where the tail is sampled, a zero marks a drawn key: the drawn keys of a row
            share its tail equally.
        key_MRK: positions of the K keys in the sample.
        tail_MR: mass of the keys that were not kept as they are.
        mass_MR: what whole rows sum to, where a sink keeps it from being one; otherwise ``None``.
        offset_MR: sum of T log T over the tail minus the same over the drawn keys; ``None`` if the tail is one bucket.
    """

    code_MRK: Tensor
    key_MRK: Tensor
    tail_MR: Tensor
    mass_MR: Tensor | None = None
    offset_MR: Tensor | None = None

    @classmethod
    def encode(cls, rows_MRL: Tensor, k: int, dtype: str, tail: str = "sampled", first: int = 0) -> Self:
        """From whole rows in float32; a sample of fewer than ``k`` tokens keeps all of them.

        Args:
            rows_MRL: probabilities.
            k: entries kept of each row.
            dtype: a key of ``DTYPES``.
            tail: ``sampled`` or ``bucket``.
            first: the number of the first row, where the rows of one head are encoded in parts.
        """
        small = small_float(dtype)
        mass_MR = missing_mass(rows_MRL, dtype)
        prob_MRK, key_MRK = rows_MRL.topk(min(k, rows_MRL.shape[-1]), dim=-1)
        if tail == "bucket" or prob_MRK.shape[-1] == rows_MRL.shape[-1]:
            tail_MR = (rows_MRL.sum(-1) - prob_MRK.sum(-1)).clamp_min(0)
            code_MRK = encode_probabilities(prob_MRK, dtype)
            return cls(code_MRK, narrow_index(key_MRK, rows_MRL.shape[-1]), tail_MR.to(small), mass_MR)
        prob_MRK, key_MRK, tail_MR, offset_MR = _draw_tail(rows_MRL, prob_MRK, key_MRK, first)
        code_MRK = encode_probabilities(prob_MRK, dtype, keep_small=True)
        return cls(code_MRK, narrow_index(key_MRK, rows_MRL.shape[-1]), tail_MR.to(small), mass_MR, offset_MR.to(small))

    def decode(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Float32 probabilities and int64 keys [M, R, K], float32 mass of the bucket and offset [M, R]."""
        tail_MR = self.tail_MR.float()
        kept_MR = (mass_or_ones(self.mass_MR, self.code_MRK) - tail_MR).clamp_min(0)
        prob_MRK = decode_probabilities(self.code_MRK, kept_MR)
        if self.offset_MR is None:
            return prob_MRK, self.key_MRK.long(), tail_MR, torch.zeros_like(tail_MR)
        drawn_MRK = self.code_MRK == 0
        share_MR = tail_MR / drawn_MRK.sum(-1).clamp_min(1)
        prob_MRK = torch.where(drawn_MRK, share_MR[..., None], prob_MRK)
        return prob_MRK, self.key_MRK.long(), torch.zeros_like(tail_MR), self.offset_MR.float()

    def moved(self, call: AttentionCall, index: RowIndex, now_MRL: Tensor) -> Tensor:
        """``now_MRL`` minus the stored rows, whose tail lies evenly on the keys not kept that ``now_MRL`` reaches."""
        prob_MRK, key_MRK, tail_MR, _ = self.to(now_MRL.device).decode()
        seen_MRL = now_MRL > 0
        others_MR = seen_MRL.sum(-1) - seen_MRL.gather(-1, key_MRK).sum(-1)
        level_MR1 = (tail_MR / others_MR.clamp_min(1))[..., None]
        moved_MRL = torch.where(seen_MRL, now_MRL - level_MR1, 0.0)
        return moved_MRL.scatter_(-1, key_MRK, now_MRL.gather(-1, key_MRK) - prob_MRK)

    def check(self, heads: int, queries: int, length: int) -> bool:
        """Whether the shapes fit each other and every key is one of the sample's tokens."""
        shape = (heads, queries, self.code_MRK.shape[-1])
        key_MRK = self.key_MRK.to(torch.int64)  # torch has no maximum of uint16
        return (
            self.code_MRK.shape == self.key_MRK.shape == shape
            and not self.key_MRK.is_floating_point()
            and (not key_MRK.numel() or (int(key_MRK.max()) < length and int(key_MRK.min()) >= 0))
            and (shape[2] > 0 or heads == 0)
            and all(fits(tensor, shape[:2]) for tensor in (self.tail_MR, self.mass_MR, self.offset_MR))
        )

    @staticmethod
    def collate(parts: Sequence["StoredTopK"], starts: list[int], num_queries: int, padded: int) -> TopKRows:
        """The rows of a batch, sample after sample."""
        widest = max(part.code_MRK.shape[-1] for part in parts)
        columns: list[list[Tensor]] = [[], [], [], []]
        for part, start in zip(parts, starts):
            prob_MRK, key_MRK, tail_MR, offset_MR = part.decode()
            rows, room = num_queries - prob_MRK.shape[1], widest - prob_MRK.shape[2]
            # Surplus places repeat a kept key, so that it stays out of the bucket, and weigh nothing.
            key_MRK = torch.cat([key_MRK, key_MRK[..., :1].expand(-1, -1, room)], -1) + start
            columns[0].append(F.pad(prob_MRK, (0, room, 0, rows)))
            columns[1].append(F.pad(key_MRK, (0, 0, 0, rows), value=start))
            columns[2].append(F.pad(tail_MR, (0, rows)))
            columns[3].append(F.pad(offset_MR, (0, rows)))
        return TopKRows(*(torch.cat(column) for column in columns))


def _draw_tail(
    rows_MRL: Tensor, prob_MRK: Tensor, key_MRK: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Threshold sampling: the first m of the K largest stay, K - m keys are drawn for all others.

    Args:
        rows_MRL: whole rows.
        prob_MRK: their K largest entries, in order.
        key_MRK: where these are.
        first: the number of the first row.

    Returns:
        probabilities [M, R, K] with zeros for drawn keys, keys, the tail's mass [M, R], the offset [M, R].
    """
    count = prob_MRK.shape[-1]
    place_K = torch.arange(count, device=rows_MRL.device)
    rest_MRK = (rows_MRL.sum(-1, keepdim=True) - (prob_MRK.cumsum(-1) - prob_MRK)).clamp_min(0)
    # With m entries kept, each drawn key stands for tau = rest / (K - m); m is the first for which no entry is larger.
    fits_MRK = prob_MRK <= rest_MRK / (count - place_K)
    fits_MRK[..., -1] = True
    m_MR1 = fits_MRK.int().argmax(-1, keepdim=True)
    drawn_MRK = place_K >= m_MR1
    tail_MRL = rows_MRL.scatter(-1, key_MRK, torch.where(drawn_MRK, prob_MRK, 0.0))
    cumulative_MRL = tail_MRL.cumsum(-1)
    tail_MR1 = cumulative_MRL[..., -1:]
    n_MR1 = count - m_MR1
    # One start a row, spread evenly over rows by the golden ratio: no random numbers, no two rows alike.
    row_MR = torch.arange(rows_MRL[..., 0].numel(), device=rows_MRL.device).view(rows_MRL.shape[:-1]) + first
    start_MR1 = ((row_MR + 1).double() * 0.6180339887498949).frac()[..., None].to(rows_MRL.dtype)
    wanted_MRK = (place_K - m_MR1 + start_MR1).clamp_min(0) * (tail_MR1 / n_MR1)
    found_MRK = torch.searchsorted(cumulative_MRL, wanted_MRK.contiguous(), right=True)
    key_MRK = torch.where(drawn_MRK, found_MRK.clamp_max(rows_MRL.shape[-1] - 1), key_MRK)
    tail_MR, n_MR = tail_MR1[..., 0], n_MR1[..., 0]
    offset_MR = torch.special.xlogy(tail_MRL, tail_MRL).sum(-1) - torch.special.xlogy(tail_MR, tail_MR / n_MR)
    return torch.where(drawn_MRK, 0.0, prob_MRK), key_MRK, tail_MR, offset_MR

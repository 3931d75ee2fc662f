"""What an attention layer was called with, and which of its rows are wanted.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D head size,
P (sample, head) pairs, R query rows per pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

TILE_ELEMENTS = 1 << 22
"""Numbers computed at a time for one tile of pairs (16 MB in float32): what bounds the extra memory."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer's attention function was called with.

    Attributes:
        layer: the module's ``layer_idx``.
        q_BHLD: queries after rotary embedding and query norm.
        k_BKLD: keys, with their own (grouped) heads.
        v_BKLD: values.
        mask: as the backend received it; see ``masks.mask_scores``.
        scaling: factor on the scores.
        softcap: bound of the tanh on the scores, if the model has one.
        window: sliding window of this layer, if it has one.
        sink_H: each head's attention sink, one more score in the softmax that belongs to no key, if the model has them.
        segment_BL: number of the packed sequence a token belongs to, where the backend is not told by its mask.
        repeated: this layer was called with these very queries and keys just before; only its values are others.
    """

    layer: int
    q_BHLD: Tensor
    k_BKLD: Tensor
    v_BKLD: Tensor
    mask: Any
    scaling: float
    softcap: float | None = None
    window: int | None = None
    sink_H: Tensor | None = None
    segment_BL: Tensor | None = None
    repeated: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.q_BHLD.shape[1] // self.k_BKLD.shape[1]

    def of_sample(self, number: int, length: int) -> "AttentionCall":
        """One sample's part of a batch that is padded on the right, as if it had been alone.

        Args:
            number: of the sample in the batch.
            length: its tokens.
        """
        one, own = slice(number, number + 1), slice(length)
        mask = self.mask
        if isinstance(mask, Tensor):
            mask = mask[one if len(mask) > 1 else slice(None)]
            mask = mask[..., own, own] if mask.dim() == 4 else mask[..., own]
        return replace(
            self,
            q_BHLD=self.q_BHLD[one, :, own],
            k_BKLD=self.k_BKLD[one, :, own],
            v_BKLD=self.v_BKLD[one, :, own],
            mask=mask,
            segment_BL=None if self.segment_BL is None else self.segment_BL[one, own],
        )


@dataclass(frozen=True, slots=True)
class RowIndex:
    """The rows wanted from one layer: R query positions for each of P (sample, head) pairs.

    Attributes:
        sample_P: index into the batch.
        head_P: query head.
        query_PR: query positions in the padded sequence; a pair with fewer rows repeats any valid position and
            gives the surplus no weight.
    """

    sample_P: Tensor
    head_P: Tensor
    query_PR: Tensor

    def __getitem__(self, pairs: slice) -> "RowIndex":
        return RowIndex(self.sample_P[pairs], self.head_P[pairs], self.query_PR[pairs])

    def of_queries(self, rows: slice) -> "RowIndex":
        """The same pairs with some of their queries."""
        return RowIndex(self.sample_P, self.head_P, self.query_PR[:, rows])

    def __len__(self) -> int:
        return len(self.sample_P)

    def tiles(self, length: int, size: int) -> Iterator[slice]:
        """Slices over the pairs, each of at most ``TILE_ELEMENTS`` numbers: R x L scores and L x D keys a pair."""
        step = max(1, TILE_ELEMENTS // max(1, (self.query_PR.shape[1] + size) * length))
        return (slice(start, start + step) for start in range(0, len(self), step))

    def to(self, *args: object, **kwargs: object) -> "RowIndex":
        """The same on another device."""
        move = (tensor.to(*args, **kwargs) for tensor in (self.sample_P, self.head_P, self.query_PR))  # type: ignore[call-overload]
        return RowIndex(*move)

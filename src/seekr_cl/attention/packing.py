"""Rows of a padded batch packed into fewer sequences, and an attention call on these seen row by row again.

Shapes: B rows, L padded length, S sequences, M their length, N real tokens, H query heads, K key/value heads,
D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from seekr_cl.attention.call import AttentionCall
from seekr_cl.errors import ModelError

OWNER = "_seekr_packing"
"""The attribute under which an attention layer finds whoever packs its model's batches: an object with a ``plan``."""


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """Where each real token of a padded batch stands in the packed one.

    Attributes:
        padded: B and L.
        packed: S and M.
        padded_N: places of the real tokens in the padded batch, its rows behind one another.
        packed_N: their places in the packed one.
        position_SM: each token's position in its row; 0 behind the last row of a sequence.
        real_BL: true where a token is real.
    """

    padded: tuple[int, int]
    packed: tuple[int, int]
    padded_N: Tensor
    packed_N: Tensor
    position_SM: Tensor
    real_BL: Tensor
    _masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def pack(self, padded_BL: Tensor) -> Tensor:
        """Real tokens' values [B, L, ...] as [S, M, ...]; zeros where there is none."""
        return _moved(padded_BL, self.padded_N, self.packed_N, self.packed)

    def unpack(self, packed_SM: Tensor) -> Tensor:
        """Values [S, M, ...] as [B, L, ...]; zeros in the padding."""
        return _moved(packed_SM, self.packed_N, self.padded_N, self.padded)

    def look(
        self, action: Callable[[AttentionCall, Tensor], Tensor], call: AttentionCall, output_SMHD: Tensor
    ) -> Tensor:
        """What an action makes of a layer's output [S, M, H, D], shown to it as if every row had been alone."""
        if output_SMHD.shape[:2] != self.packed:
            raise ModelError(
                f"attention layer {call.layer} ran on {tuple(output_SMHD.shape[:2])} tokens where a batch packed into "
                f"{self.packed} was expected; set packing: false"
            )
        output_BLHD = self.unpack(output_SMHD)
        seen = action(self.unpack_call(call), output_BLHD)
        return output_SMHD if seen is output_BLHD else self.pack(seen)

    def unpack_call(self, call: AttentionCall) -> AttentionCall:
        """The call with queries, keys and values [B, H, L, D], and the mask of each row alone.

        ModelError if nothing kept the rows apart.
        """
        if call.mask is None and call.segment_BL is None:
            raise ModelError(
                f"attention layer {call.layer} got no mask that keeps packed rows apart; set packing: false"
            )
        q_BHLD, k_BKLD, v_BKLD = (
            self.unpack(t.transpose(1, 2)).transpose(1, 2) for t in (call.q_BHLD, call.k_BKLD, call.v_BKLD)
        )
        # Flash attention is told where rows begin, and causality and window are its own.
        mask = self.real_BL if call.mask is None else self._unpack_mask(call.mask)
        return replace(call, q_BHLD=q_BHLD, k_BKLD=k_BKLD, v_BKLD=v_BKLD, mask=mask, segment_BL=None)

    def _unpack_mask(self, mask: Tensor | BlockMask) -> Tensor:
        known = self._masks.get(id(mask))
        if known is not None:
            return known[1]
        if isinstance(mask, Tensor) and mask.dim() != 4:
            raise ModelError(f"a {mask.dim()}-D mask cannot be read in a packed batch; set packing: false")
        place_BL = self.unpack(torch.arange(self.packed[0] * self.packed[1]).view(self.packed).to(self.real_BL.device))
        sequence_B111 = place_BL.amax(1)[:, None, None, None] // self.packed[1]
        query_B1L1, key_B11L = (place_BL % self.packed[1])[:, None, :, None], (place_BL % self.packed[1])[:, None, None]
        if isinstance(mask, BlockMask):
            row_BHLL = mask.mask_mod(sequence_B111, torch.zeros_like(sequence_B111), query_B1L1, key_B11L)
        else:
            if len(mask) == 1:
                sequence_B111 = torch.zeros_like(sequence_B111)
            head_1H11 = torch.arange(mask.shape[1], device=mask.device)[None, :, None, None]
            row_BHLL = mask[sequence_B111, head_1H11, query_B1L1, key_B11L]
        hidden = False if row_BHLL.dtype == torch.bool else torch.finfo(row_BHLL.dtype).min
        row_BHLL = row_BHLL.masked_fill(~self.real_BL[:, None, None], hidden)
        # Layers share masks. One that is computed within a layer is its own and has a gradient.
        if isinstance(mask, Tensor) and not mask.requires_grad:
            self._masks[id(mask)] = (mask, row_BHLL)
        return row_BHLL


def _moved(values: Tensor, here_N: Tensor, there_N: Tensor, shape: tuple[int, int]) -> Tensor:
    """Values of the first two axes' places ``here_N`` at ``there_N`` of ``shape``."""
    flat = values.new_zeros((shape[0] * shape[1], *values.shape[2:]))
    return flat.index_copy(0, there_N, values.flatten(0, 1).index_select(0, here_N)).unflatten(0, shape)


def plan_packing(mask_BL: Tensor, one_sequence: bool = False) -> PackingPlan | None:
    """How a batch's rows are packed, first-fit decreasing, into sequences no longer than its longest row.

    So no row attends over more than in the padded batch.

    Args:
        mask_BL: 1 for real tokens, one run of them in each row.
        one_sequence: all rows behind one another without any padding, for attention that costs nothing between rows.

    Returns:
        The plan; ``None`` if nothing is saved, or a row's real tokens are not one run.
    """
    real_BL = mask_BL.bool()
    host_BL = real_BL.cpu()
    lengths = host_BL.sum(1).tolist()
    firsts = host_BL.int().argmax(1).tolist()
    if not all(lengths) or not all(row[a : a + n].all() for row, a, n in zip(host_BL, firsts, lengths)):
        return None
    capacity = sum(lengths) if one_sequence else max(lengths)
    sequences = [list(range(len(lengths)))] if one_sequence else _first_fit(lengths, capacity)
    packed = (len(sequences), capacity)
    if packed[0] * packed[1] >= host_BL.numel() or len(sequences) == len(lengths):
        return None
    padded_N, packed_N = [], []
    position_SM = torch.zeros(packed, dtype=torch.long)
    for number, rows in enumerate(sequences):
        start = 0
        for row in rows:
            at = torch.arange(lengths[row])
            padded_N.append(row * host_BL.shape[1] + firsts[row] + at)
            packed_N.append(number * capacity + start + at)
            position_SM[number, start : start + lengths[row]] = at
            start += lengths[row]
    device = mask_BL.device
    moved = (torch.cat(padded_N).to(device), torch.cat(packed_N).to(device), position_SM.to(device))
    return PackingPlan((host_BL.shape[0], host_BL.shape[1]), packed, *moved, real_BL)


def _first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows by sequence: each, the longest first, into the first that has room."""
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((number for number, free in enumerate(room) if free >= lengths[row]), len(room))
        if place == len(room):
            sequences.append([])
            room.append(capacity)
        sequences[place].append(row)
        room[place] -= lengths[row]
    return sequences

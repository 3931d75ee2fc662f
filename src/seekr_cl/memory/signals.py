"""What a teacher said of a kept sample: the kinds of signals a memory can hold.

A kind says how it becomes named tensors and back, and what must fit in them. Another one is a class with these three
methods in a file of its own and a line in ``SIGNALS``; files, checks, archives and budgets take it from there.

Shapes: L tokens of the sample, A stored answer positions, K stored tokens of each, M heads of all layers, R queries,
G samples of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seekr_cl.attention.stored import StoredDense, StoredFactors, StoredOutputs, StoredSignal, StoredTopK, stored_from
from seekr_cl.attention.stored.codec import decode_probabilities, encode_probabilities


class Signal(Protocol):
    """One kind of signal of one sample."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        ...

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """From what ``tensors`` gave; KeyError or ValueError if they are not those of this kind."""
        ...

    def check(self, length: int, heads: int) -> dict[str, bool]:
        """Whether each part fits a sample of so many tokens, of a task with so many heads."""
        ...


@dataclass(frozen=True, slots=True)
class LogitSignal:
    """A teacher's next-token distributions at the positions a loss uses.

    Attributes:
        position_A: positions in the sample whose output is distilled.
        code_AK: encoded probabilities of K tokens; of all tokens in order when ``token_AK`` is None.
        token_AK: which tokens these are.
        tail_A: probability of all other tokens; ``None`` when there are none.
        offset_A: present if tokens are drawn for the others as in ``StoredTopK``; otherwise they are one bucket.
    """

    position_A: Tensor
    code_AK: Tensor
    token_AK: Tensor | None = None
    tail_A: Tensor | None = None
    offset_A: Tensor | None = None

    @classmethod
    def encode(
        cls, position_A: Tensor, logits_AV: Tensor, top_k: int | None, dtype: str, tail: str = "sampled"
    ) -> Self:
        """From a teacher's logits: ``top_k`` tokens of each distribution, or all in order."""
        prob_AV = logits_AV.float().softmax(-1)
        if top_k is None or top_k >= prob_AV.shape[-1]:
            return cls(position_A, encode_probabilities(prob_AV, dtype))
        kept = StoredTopK.encode(prob_AV[None], top_k, dtype, tail)
        offset_A = None if kept.offset_MR is None else kept.offset_MR[0]
        return cls(position_A, kept.code_MRK[0], kept.key_MRK[0], kept.tail_MR[0], offset_A)

    def decode(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Float32 probabilities and int64 tokens [A, K], float32 mass of the bucket and offset [A]."""
        count, width = self.code_AK.shape
        if self.token_AK is None or self.tail_A is None:
            prob_AK = decode_probabilities(self.code_AK, torch.ones(count))
            return prob_AK, torch.arange(width).expand(count, -1), torch.zeros(count), torch.zeros(count)
        offset_1A = None if self.offset_A is None else self.offset_A[None]
        kept = StoredTopK(self.code_AK[None], self.token_AK[None], self.tail_A[None], offset_MR=offset_1A)
        prob_1AK, token_1AK, bucket_1A, offset_1A = kept.decode()
        return prob_1AK[0], token_1AK[0], bucket_1A[0], offset_1A[0]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        named = {"position": self.position_A.to(torch.int32), "code": self.code_AK}
        more = {"token": self.token_AK, "tail": self.tail_A, "offset": self.offset_A}
        return named | {name: tensor for name, tensor in more.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """From what ``tensors`` gave.

        Raises:
            KeyError: without positions or probabilities.
            ValueError: if one is none of these.
        """
        position_A, code_AK = tensors.pop("position").long(), tensors.pop("code")
        rest = [tensors.pop(name, None) for name in ("token", "tail", "offset")]
        if tensors:
            raise ValueError(f"{sorted(tensors)} of logits unknown")
        return cls(position_A, code_AK, *rest)

    def check(self, length: int, heads: int) -> dict[str, bool]:
        """Whether positions lie in the sample and everything else has as many rows."""
        fits = {
            "position": _inside(self.position_A, length),
            "code": self.code_AK.dim() == 2 and len(self.code_AK) == len(self.position_A),
            "token": self.token_AK is None
            or (self.token_AK.shape == self.code_AK.shape and not self.token_AK.is_floating_point()),
        }
        for name, numbers in (("tail", self.tail_A), ("offset", self.offset_A)):
            fits[name] = numbers is None or numbers.shape == self.position_A.shape
        return fits

    @staticmethod
    def collate(parts: Sequence["LogitSignal"], starts: Sequence[int]) -> dict[str, Any]:
        """The signals of a batch: ``position``, ``real``, ``tail``, ``offset`` [G, A], ``prob``, ``token`` [G, A, K].

        ``token`` is ``None`` where all samples keep the whole vocabulary.

        Args:
            parts: one of each sample.
            starts: where each sample's first token stands in the padded batch.
        """
        widest = max(part.code_AK.shape[1] for part in parts)
        # Tokens by name as soon as one signal names them; under a larger ``logits_top_k`` another may hold more.
        named = any(part.token_AK is not None or part.code_AK.shape[1] < widest for part in parts)
        names = ("position", "real", "prob", "token", "tail", "offset")
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        for part, start in zip(parts, starts):
            prob_AK, token_AK, tail_A, offset_A = part.decode()
            # What fills the room has probability zero and repeats a kept token, so that the tail stays what it was.
            room = widest - prob_AK.shape[1]
            filler_AK = token_AK[:, :1].expand(-1, room)
            found = (part.position_A + start, torch.ones(len(prob_AK), dtype=torch.bool), F.pad(prob_AK, (0, room)))
            for name, tensor in zip(columns, (*found, torch.cat([token_AK, filler_AK], 1), tail_A, offset_A)):
                columns[name].append(tensor)
        batch: dict[str, Any] = {name: pad_sequence(column, batch_first=True) for name, column in columns.items()}
        return batch if named else batch | {"token": None}


@dataclass(frozen=True, slots=True)
class AttentionSignal:
    """A teacher's attention rows at the heads and queries chosen for the sample.

    Attributes:
        query_R: query positions in the sample.
        rows: the rows of all of the task's heads, layer after layer; ``None`` where the task keeps its teacher.
    """

    query_R: Tensor
    rows: StoredSignal | None
    forms: ClassVar[tuple[type, ...]] = (StoredDense, StoredTopK, StoredFactors)

    def of_layer(self, heads: Mapping[int, Sequence[int]], layer: int) -> StoredSignal:
        """One layer's rows, in the order of the task's ``heads`` of that layer.

        Raises:
            ValueError: if only the queries are kept.
        """
        if self.rows is None:
            raise ValueError("the rows are not kept")
        first = sum(len(heads[earlier]) for earlier in heads if earlier < layer)
        return self.rows.pick(list(range(first, first + len(heads[layer]))))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        rows = {} if self.rows is None else self.rows.tensors()
        return {"query": self.query_R.to(torch.int32), **{f"rows/{name}": tensor for name, tensor in rows.items()}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """From what ``tensors`` gave.

        Raises:
            KeyError: without queries.
            ValueError: if the others are those of no form of rows.
        """
        query_R = tensors.pop("query").long()
        rows = {name.removeprefix("rows/"): tensor for name, tensor in tensors.items()}
        return cls(query_R, stored_from(rows) if rows else None)

    def check(self, length: int, heads: int) -> dict[str, bool]:
        """Whether queries lie in the sample, and rows are those of its task's heads in a form of this kind."""
        return {
            "query": _inside(self.query_R, length),
            "rows": self.rows is None or self.rows.check(heads, len(self.query_R), length),
            "form": self.rows is None or isinstance(self.rows, self.forms),
        }


@dataclass(frozen=True, slots=True)
class ValueSignal(AttentionSignal):
    """A teacher's rows of value relations; see ``attention.features.value_call``."""


@dataclass(frozen=True, slots=True)
class OutputSignal(AttentionSignal):
    """What a teacher's heads gave, in place of where they looked."""

    forms: ClassVar[tuple[type, ...]] = (StoredOutputs,)


ROWS: dict[str, type[AttentionSignal]] = {"attention": AttentionSignal, "values": ValueSignal, "outputs": OutputSignal}
"""Signals of chosen heads at chosen queries."""
SIGNALS: dict[str, type[Signal]] = {"logits": LogitSignal, **ROWS}
"""All kinds by name, which is the first part of their tensors' names in a file."""


def _inside(index_N: Tensor, length: int) -> bool:
    return index_N.dim() == 1 and bool(((index_N >= 0) & (index_N < length)).all())

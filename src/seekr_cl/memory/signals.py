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
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seekr_cl.attention.stored import BY_TENSOR, StoredOutputs, StoredSignal, StoredTopK
from seekr_cl.attention.stored.codec import encode_probabilities, small_float


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
            Beside no ``token_AK`` it says that the codes are the logits themselves.
    """

    position_A: Tensor
    code_AK: Tensor
    token_AK: Tensor | None = None
    tail_A: Tensor | None = None
    offset_A: Tensor | None = None

    @classmethod
    def encode(
        cls,
        position_A: Tensor,
        logits_AV: Tensor,
        top_k: int | None,
        dtype: str,
        tail: str = "sampled",
        first: int = 0,
    ) -> Self:
        """From a teacher's logits: ``top_k`` tokens of each distribution, or all in order.

        Args:
            position_A: where in the sample.
            logits_AV: there.
            top_k: tokens that are kept; ``None`` keeps all.
            dtype: a key of ``DTYPES``.
            tail: ``sampled`` or ``bucket``.
            first: how many positions of the sample came before, where it is encoded in parts; see ``joined``.
        """
        prob_AV = logits_AV.float().softmax(-1)
        if top_k is None or top_k >= prob_AV.shape[-1]:
            return cls(position_A, encode_probabilities(prob_AV, dtype))
        kept = StoredTopK.encode(prob_AV[None], top_k, dtype, tail, first)
        offset_A = None if kept.offset_MR is None else kept.offset_MR[0]
        return cls(position_A, kept.code_MRK[0], kept.key_MRK[0], kept.tail_MR[0], offset_A)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One sample's signal, encoded in parts."""
        return (
            parts[0]
            if len(parts) == 1
            else cls.from_tensors(
                {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
            )
        )

    @classmethod
    def of_logits(cls, position_A: Tensor, logits_AV: Tensor, dtype: str) -> Self:
        """The logits themselves, for losses that compare them; in half precision unless ``dtype`` is ``float32``."""
        code_AV = logits_AV.to(small_float(dtype))
        return cls(position_A, code_AV, offset_A=torch.zeros(len(code_AV), dtype=code_AV.dtype))

    @property
    def logits_AV(self) -> Tensor | None:  # noqa: N802
        """Float32 logits, where these were kept and not their probabilities."""
        return self.code_AK.float() if self.token_AK is None and self.offset_A is not None else None

    def decode(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Float32 probabilities and int64 tokens [A, K], float32 mass of the bucket and offset [A]."""
        prob_1AK, token_1AK, bucket_1A, offset_1A = self._rows().decode()
        return prob_1AK[0], token_1AK[0], bucket_1A[0], offset_1A[0]

    def _rows(self) -> StoredTopK:
        """The same as the rows of one head, whose keys are tokens."""
        count, width = self.code_AK.shape
        if self.token_AK is None:
            code_AK = self.code_AK if self.logits_AV is None else self.logits_AV.softmax(-1)
            return StoredTopK(code_AK[None], torch.arange(width).expand(1, count, -1), torch.zeros(1, count))
        tail_A = torch.zeros(count) if self.tail_A is None else self.tail_A
        offset_1A = None if self.offset_A is None else self.offset_A[None]
        return StoredTopK(self.code_AK[None], self.token_AK[None], tail_A[None], offset_MR=offset_1A)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        named = {"position": self.position_A.to(torch.int32), "code": self.code_AK}
        more = {"token": self.token_AK, "tail": self.tail_A, "offset": self.offset_A}
        return named | {name: tensor for name, tensor in more.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """From what ``tensors`` gave; KeyError without positions or probabilities, ValueError for anything else."""
        position_A, code_AK = tensors.pop("position").long(), tensors.pop("code")
        rest = [tensors.pop(name, None) for name in ("token", "tail", "offset")]
        if tensors:
            raise ValueError(f"{sorted(tensors)} of logits unknown")
        return cls(position_A, code_AK, *rest)

    def check(self, length: int, heads: int) -> dict[str, bool]:
        """Whether positions lie in the sample and everything else has as many rows."""
        code_AK, token_AK, shape = self.code_AK, self.token_AK, self.position_A.shape
        fits = {
            "position": _inside(self.position_A, length),
            "code": code_AK.dim() == 2 and len(code_AK) == len(self.position_A),
            "token": token_AK is None
            or (
                token_AK.shape == code_AK.shape and not token_AK.is_floating_point() and not (token_AK.long() < 0).any()
            ),
        }
        for name, numbers in (("tail", self.tail_A), ("offset", self.offset_A)):
            fits[name] = numbers is None or (numbers.shape == shape and bool(torch.isfinite(numbers.float()).all()))
        return fits

    @staticmethod
    def collate(parts: Sequence["LogitSignal"], starts: Sequence[int]) -> dict[str, Any]:
        """A batch's signals: ``position``, ``real``, ``tail``, ``offset`` [G, A], ``prob`` and ``token`` [G, A, K]."""
        widest, longest = (max(part.code_AK.shape[axis] for part in parts) for axis in (1, 0))
        rows = StoredTopK.collate([part._rows() for part in parts], [0] * len(parts), longest, 0)
        # No tokens by name where all keep the whole vocabulary; under a larger ``logits_top_k`` some may hold more.
        named = any(part.token_AK is not None or part.code_AK.shape[1] < widest for part in parts)
        position_GA = pad_sequence([part.position_A + start for part, start in zip(parts, starts)], batch_first=True)
        real_GA = torch.arange(longest) < torch.tensor([[len(part.position_A)] for part in parts])
        batch = {"position": position_GA, "real": real_GA, "prob": rows.prob_PRK, "tail": rows.tail_PR}
        return batch | {"offset": rows.offset_PR, "token": rows.key_PRK if named else None}


@dataclass(frozen=True, slots=True)
class AttentionSignal:
    """A teacher's attention rows at the heads and queries chosen for the sample.

    Attributes:
        query_R: query positions in the sample.
        rows: the rows of all of the task's heads, layer after layer; ``None`` where the task keeps its teacher.
    """

    query_R: Tensor
    rows: StoredSignal | None
    forms: ClassVar[dict[str, type[StoredSignal]]] = {n: form for n, form in BY_TENSOR.items() if n != "out"}

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
        """From what ``tensors`` gave; KeyError without queries, ValueError if the others are of no form of rows."""
        query_R = tensors.pop("query").long()
        rows = {name.removeprefix("rows/"): tensor for name, tensor in tensors.items()}
        form = next((form for name, form in cls.forms.items() if name in rows), None)
        if rows and form is None:
            raise ValueError(f"{sorted(rows)} are of no form of rows")
        return cls(query_R, None if form is None else form.from_tensors(rows))

    def check(self, length: int, heads: int) -> dict[str, bool]:
        """Whether queries lie in the sample, and rows are those of its task's heads in a form of this kind."""
        return {
            "query": _inside(self.query_R, length),
            "rows": self.rows is None or self.rows.check(heads, len(self.query_R), length),
            "form": self.rows is None or isinstance(self.rows, tuple(self.forms.values())),
        }


@dataclass(frozen=True, slots=True)
class ValueSignal(AttentionSignal):
    """A teacher's rows of value relations; see ``attention.features.value_call``."""


@dataclass(frozen=True, slots=True)
class OutputSignal(AttentionSignal):
    """What a teacher's heads gave, in place of where they looked."""

    forms: ClassVar[dict[str, type[StoredSignal]]] = {"out": StoredOutputs}


ROWS: dict[str, type[AttentionSignal]] = {"attention": AttentionSignal, "values": ValueSignal, "outputs": OutputSignal}
"""Signals of chosen heads at chosen queries."""
SIGNALS: dict[str, type[Signal]] = {"logits": LogitSignal, **ROWS}
"""All kinds by name, which is the first part of their tensors' names in a file."""


def _inside(index_N: Tensor, length: int) -> bool:
    return index_N.dim() == 1 and bool(((index_N >= 0) & (index_N < length)).all())

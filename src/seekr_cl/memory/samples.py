"""What the memory keeps of one old example, and of one task.

Shapes: L tokens of the sample, A stored answer positions, K stored tokens of each, M heads of one layer, R queries.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, Self, overload

import torch
from torch import Tensor

from seekr_cl.attention.stored import StoredOutputs, StoredSignal, StoredTopK
from seekr_cl.attention.stored.codec import decode_probabilities, encode_probabilities, small_float
from seekr_cl.tasks.collate import Encoded, Spans, spans_of


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
        cls, position_A: Tensor, logits_AV: Tensor, top_k: int | None, dtype: str, tail: str = "sampled"
    ) -> Self:
        """From a teacher's logits: ``top_k`` tokens of each distribution, or all in order."""
        prob_AV = logits_AV.float().softmax(-1)
        if top_k is None or top_k >= prob_AV.shape[-1]:
            return cls(position_A, encode_probabilities(prob_AV, dtype))
        kept = StoredTopK.encode(prob_AV[None], top_k, dtype, tail)
        offset_A = None if kept.offset_MR is None else kept.offset_MR[0]
        return cls(position_A, kept.code_MRK[0], kept.key_MRK[0], kept.tail_MR[0], offset_A)

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
        count, width = self.code_AK.shape
        if (logits_AV := self.logits_AV) is not None:
            none_A = torch.zeros(count)
            return logits_AV.softmax(-1), torch.arange(width).expand(count, -1), none_A, none_A
        if self.token_AK is None or self.tail_A is None:
            prob_AK = decode_probabilities(self.code_AK, torch.ones(count))
            return prob_AK, torch.arange(width).expand(count, -1), torch.zeros(count), torch.zeros(count)
        offset_1A = None if self.offset_A is None else self.offset_A[None]
        kept = StoredTopK(self.code_AK[None], self.token_AK[None], self.tail_A[None], offset_MR=offset_1A)
        prob_1AK, token_1AK, bucket_1A, offset_1A = kept.decode()
        return prob_1AK[0], token_1AK[0], bucket_1A[0], offset_1A[0]


SIGNALS = ("attention", "values", "outputs")
"""What a teacher's rows can be of; the first part of their names in a file."""


@dataclass(frozen=True, slots=True)
class AttentionSignal:
    """A teacher's attention rows, or what stands in their place, at the heads and queries chosen for the sample.

    Attributes:
        query_R: query positions in the sample.
        rows: the rows of all of the task's heads, layer after layer; ``None`` where the task keeps its teacher.
        of: ``attention`` rows, rows of ``values`` relations, or the heads' ``outputs``; one of ``SIGNALS``.
    """

    query_R: Tensor
    rows: StoredSignal | None
    of: str = "attention"

    def of_layer(self, heads: dict[int, list[int]], layer: int) -> StoredSignal:
        """One layer's rows, in the order of the task's ``heads`` of that layer.

        Raises:
            ValueError: if only the queries are kept.
        """
        if self.rows is None:
            raise ValueError("the rows are not kept")
        first = sum(len(heads[earlier]) for earlier in heads if earlier < layer)
        return self.rows.pick(list(range(first, first + len(heads[layer]))))


@dataclass(frozen=True, slots=True)
class ReplaySample:
    """One old example with what its teacher said about it.

    Attributes:
        prompt: text, for people and for other tokenizers.
        completion: text.
        ids_L: token ids as they were trained on.
        completion_start: index of the first token of the last answer.
        logits: for logit distillation, if the method stored it.
        attention: for attention distillation, if the method stored it.
        learnt: begin and end of each run of tokens to learn; ``None`` if it is all from ``completion_start`` on.
    """

    prompt: str
    completion: str
    ids_L: Tensor
    completion_start: int
    logits: LogitSignal | None = None
    attention: AttentionSignal | None = None
    learnt: Spans | None = None

    @property
    def spans(self) -> Spans:
        """Begin and end of each run of tokens to learn."""
        return spans_of(self.learnt, self.completion_start, len(self.ids_L))

    @property
    def answer(self) -> tuple[int, int]:
        """Begin and end of the last answer."""
        return self.spans[-1]

    @property
    def encoded(self) -> Encoded:
        """The sample as the encoder gave it."""
        return Encoded(self.ids_L.tolist(), self.completion_start, 0, self.learnt)

    @property
    def sample_id(self) -> str:
        """What ``seekr memory forget --sample`` calls it: 16 hexadecimal digits made of its texts alone."""
        return sample_id(self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a task's samples have in all, known without reading one of them.

    Attributes:
        samples: how many.
        tokens: of all samples.
        logits: samples with teacher logits.
        positions: answer positions with teacher logits.
        attention: samples with attention rows.
        queries: attention rows of each head.
    """

    samples: int = 0
    tokens: int = 0
    logits: int = 0
    positions: int = 0
    attention: int = 0
    queries: int = 0

    @classmethod
    def of(cls, samples: Iterable[ReplaySample]) -> Self:
        """Counted sample by sample."""
        sums = [0] * len(fields(cls))
        for one in samples:
            positions = None if one.logits is None else len(one.logits.position_A)
            queries = None if one.attention is None else len(one.attention.query_R)
            row = [1, len(one.ids_L), positions is not None, positions or 0, queries is not None, queries or 0]
            sums = [total + part for total, part in zip(sums, row)]
        return cls(*sums)


@dataclass(frozen=True, slots=True)
class MemoryTask:
    """The samples kept from one task.

    Attributes:
        name: the task's name.
        samples: its samples; of a memory on disk each is read when it is asked for.
        heads: ``{layer: heads}`` chosen when the task ended; its samples keep these.
        info: JSON facts: examples trained on, fingerprint of the data, method, epochs.
        teacher: the trained weights of the adapter after this task, by name, where its samples' signals are asked of it
            instead of being kept; of a memory on disk they are read when they are asked for.
    """

    name: str
    samples: Sequence[ReplaySample]
    heads: dict[int, list[int]] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] | None = None

    @property
    def totals(self) -> Totals:
        """Counts of samples, tokens and signals; of a memory on disk from its manifest."""
        stored = getattr(self.samples, "totals", None)
        return stored if isinstance(stored, Totals) else Totals.of(self.samples)


class TaskSamples(Sequence[tuple[MemoryTask, ReplaySample]]):
    """The samples of several tasks behind one another, each with its task, read when it is asked for.

    Args:
        tasks: in order.
    """

    def __init__(self, tasks: Iterable[MemoryTask]) -> None:
        self.tasks = list(tasks)
        self._ends = list(accumulate(len(task.samples) for task in self.tasks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> tuple[MemoryTask, ReplaySample]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[MemoryTask, ReplaySample]]: ...
    def __getitem__(self, index: Any) -> Any:
        """One pair, or a list of pairs for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = bisect_right(self._ends, place)
        task = self.tasks[number]
        return task, task.samples[place - self._ends[number] + len(task.samples)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


def check_sample(sample: ReplaySample, heads: dict[int, list[int]]) -> None:
    """Makes sure that a sample's tensors fit each other and the task's heads.

    Raises:
        ValueError: saying what does not fit.
    """
    length = len(sample.ids_L)
    fits = {
        "ids": sample.ids_L.dim() == 1 and not bool((sample.ids_L < 0).any()),
        "completion_start": 0 <= sample.completion_start <= length,
    }
    if sample.learnt is not None:
        borders = [border for span in sample.learnt for border in span]
        whole = bool(borders) and borders[0] >= 0 and borders[-1] <= length
        # Every run has a token, and none begins before the former ends.
        fits["learnt"] = whole and borders == sorted(borders) and all(begin < end for begin, end in sample.learnt)
        fits["completion_start"] = whole and sample.completion_start == sample.learnt[-1][0]
    if sample.logits is not None:
        signal = sample.logits
        fits["logits/position"] = _inside(signal.position_A, length)
        fits["logits/code"] = signal.code_AK.dim() == 2 and len(signal.code_AK) == len(signal.position_A)
        fits["logits/token"] = signal.token_AK is None or (
            signal.token_AK.shape == signal.code_AK.shape
            and not signal.token_AK.is_floating_point()
            and not bool((signal.token_AK.long() < 0).any())
        )
        for name, numbers in (("tail", signal.tail_A), ("offset", signal.offset_A)):
            fits[f"logits/{name}"] = numbers is None or (
                numbers.shape == signal.position_A.shape and bool(torch.isfinite(numbers.float()).all())
            )
    if sample.attention is not None:
        query_R, rows = sample.attention.query_R, sample.attention.rows
        of = sample.attention.of
        fits[f"{of}/query"] = _inside(query_R, length)
        fits[f"{of}/rows"] = rows is None or rows.check(sum(map(len, heads.values())), len(query_R), length)
        # Heads' outputs are no rows over keys, and nothing else is heads' outputs.
        fits["form"] = rows is None or (of == "outputs") == isinstance(rows, StoredOutputs)
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of {sample.prompt[:20]!r} out of place")


def _inside(index_N: Tensor, length: int) -> bool:
    return index_N.dim() == 1 and bool(((index_N >= 0) & (index_N < length)).all())


def sample_id(prompt: str, completion: str) -> str:
    """The same for the same texts wherever they are kept, so that forgetting one forgets every copy of it."""
    return hashlib.sha256(json.dumps([prompt, completion]).encode("ascii")).hexdigest()[:16]

"""What the memory keeps of one old example, and of one task.

Shapes: L tokens of the sample.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, Self, overload

from torch import Tensor

from seekr_cl.memory.signals import ROWS, AttentionSignal, LogitSignal, Signal
from seekr_cl.tasks.collate import Encoded, Spans, spans_of


@dataclass(frozen=True, slots=True)
class ReplaySample:
    """One old example with what its teacher said about it.

    Attributes:
        prompt: text, for people and for other tokenizers.
        completion: text.
        ids_L: token ids as they were trained on.
        completion_start: index of the first token of the last answer.
        signals: what the method stored of its teacher, by kind (``signals.SIGNALS``).
        learnt: begin and end of each run of tokens to learn; ``None`` if it is all from ``completion_start`` on.
    """

    prompt: str
    completion: str
    ids_L: Tensor
    completion_start: int
    signals: Mapping[str, Signal] = field(default_factory=dict)
    learnt: Spans | None = None
    _texts: Callable[[], tuple[str, str]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def with_texts(cls, texts: Callable[[], tuple[str, str]], **given: Any) -> Self:
        """A sample whose prompt and completion are read when one of them is asked for; training never does."""
        sample = cls(prompt="", completion="", **given, _texts=texts)
        for name in ("prompt", "completion"):
            object.__delattr__(sample, name)
        return sample

    def __getattr__(self, name: str) -> Any:
        # Called for what is not there: texts that nobody has asked for yet.
        if name not in ("prompt", "completion") or self._texts is None:
            raise AttributeError(name)
        for part, text in zip(("prompt", "completion"), self._texts()):
            object.__setattr__(self, part, text)
        return getattr(self, name)

    @property
    def logits(self) -> LogitSignal | None:
        """For logit distillation, if the method stored it."""
        signal = self.signals.get("logits")
        return signal if isinstance(signal, LogitSignal) else None

    @property
    def attention(self) -> AttentionSignal | None:
        """Rows of chosen heads of whatever kind, if the method stored any."""
        found = (self.signals[kind] for kind in ROWS if kind in self.signals)
        return next((signal for signal in found if isinstance(signal, AttentionSignal)), None)

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

    def lengths(self) -> list[int]:
        """Tokens of each sample; of those on disk, none is read for it."""
        found: list[int] = []
        for task in self.tasks:
            told = getattr(task.samples, "num_tokens", None)
            places = range(len(task.samples))
            found += [len(task.samples[i].ids_L) for i in places] if told is None else map(told, places)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


def check_sample(sample: ReplaySample, heads: dict[int, list[int]]) -> None:
    """Makes sure that a sample's tensors fit each other and the task's heads; ValueError says what does not."""
    length, num_heads = len(sample.ids_L), sum(map(len, heads.values()))
    fits = {"ids": sample.ids_L.dim() == 1 and not bool((sample.ids_L < 0).any())}
    fits["completion_start"] = 0 <= sample.completion_start <= length
    if sample.learnt is not None:
        fits |= _check_spans(sample.learnt, sample.completion_start, length)
    for kind, signal in sample.signals.items():
        fits |= {f"{kind}/{part}": fit for part, fit in signal.check(length, num_heads).items()}
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of the sample out of place")


def _check_spans(learnt: Spans, completion_start: int, length: int) -> dict[str, bool]:
    borders = [border for span in learnt for border in span]
    whole = bool(borders) and borders[0] >= 0 and borders[-1] <= length
    # Every run has a token, and none begins before the former ends.
    fit = whole and borders == sorted(borders) and all(begin < end for begin, end in learnt)
    return {"learnt": fit, "completion_start": whole and completion_start == learnt[-1][0]}


def sample_id(prompt: str, completion: str) -> str:
    """The same for the same texts wherever they are kept, so that forgetting one forgets every copy of it."""
    return hashlib.sha256(json.dumps([prompt, completion]).encode("ascii")).hexdigest()[:16]

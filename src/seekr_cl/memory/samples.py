"""What the memory keeps of one old example, and how it is laid out as tensors.

Shapes: L tokens of the sample, A stored answer positions, K stored tokens of each, M heads of one layer, R queries.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from seekr_cl.attention.stored import StoredRows, StoredTopK, stored_from
from seekr_cl.quantise import decode_probabilities, encode_probabilities


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


@dataclass(frozen=True, slots=True)
class AttentionSignal:
    """A teacher's attention rows at the heads and queries chosen for the sample.

    Attributes:
        query_R: query positions in the sample.
        rows: the rows of all of the task's heads, layer after layer.
    """

    query_R: Tensor
    rows: StoredRows

    def of_layer(self, heads: dict[int, list[int]], layer: int) -> StoredRows:
        """One layer's rows, in the order of the task's ``heads`` of that layer."""
        first = sum(len(heads[earlier]) for earlier in heads if earlier < layer)
        return self.rows.pick(list(range(first, first + len(heads[layer]))))


@dataclass(frozen=True, slots=True)
class ReplaySample:
    """One old example with what its teacher said about it.

    Attributes:
        prompt: text, for people and for other tokenizers.
        completion: text.
        ids_L: token ids as they were trained on.
        completion_start: index of the first completion token.
        logits: for logit distillation, if the method stored it.
        attention: for attention distillation, if the method stored it.
    """

    prompt: str
    completion: str
    ids_L: Tensor
    completion_start: int
    logits: LogitSignal | None = None
    attention: AttentionSignal | None = None


@dataclass(frozen=True, slots=True)
class MemoryTask:
    """The samples kept from one task.

    Attributes:
        name: the task's name.
        samples: its samples.
        heads: ``{layer: heads}`` chosen when the task ended; its samples keep these.
        info: JSON facts: examples trained on, fingerprint of the data, method, epochs.
    """

    name: str
    samples: list[ReplaySample]
    heads: dict[int, list[int]] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)


def pack(samples: Iterable[ReplaySample]) -> dict[str, Tensor]:
    """Samples as named tensors for a safetensors file."""
    tensors: dict[str, Tensor] = {}
    for number, sample in enumerate(samples):
        key = f"{number:06d}"
        tensors[f"{key}/ids"] = sample.ids_L.to(torch.int32)
        tensors[f"{key}/completion_start"] = torch.tensor(sample.completion_start, dtype=torch.int32)
        if sample.logits is not None:
            tensors[f"{key}/logits/position"] = sample.logits.position_A.to(torch.int32)
            tensors[f"{key}/logits/code"] = sample.logits.code_AK
            if sample.logits.token_AK is not None:
                tensors[f"{key}/logits/token"] = sample.logits.token_AK
            if sample.logits.tail_A is not None:
                tensors[f"{key}/logits/tail"] = sample.logits.tail_A
            if sample.logits.offset_A is not None:
                tensors[f"{key}/logits/offset"] = sample.logits.offset_A
        if sample.attention is not None:
            tensors[f"{key}/attention/query"] = sample.attention.query_R.to(torch.int32)
            rows = sample.attention.rows.tensors()
            tensors |= {f"{key}/attention/rows/{name}": tensor for name, tensor in rows.items()}
    return tensors


def unpack(tensors: dict[str, Tensor], texts: list[dict[str, str]]) -> list[ReplaySample]:
    """The samples that ``pack`` laid out.

    Raises:
        KeyError: if a tensor that every sample has is missing, or one is of no sample.
        TypeError: if the texts are not what they should be.
    """
    for text in texts:
        if not isinstance(text["prompt"], str) or not isinstance(text["completion"], str):
            raise TypeError("prompt and completion must be text")
    by_sample: list[dict[str, Tensor]] = [{} for _ in texts]
    place = {f"{number:06d}": part for number, part in enumerate(by_sample)}
    for name, tensor in tensors.items():
        key, _, rest = name.partition("/")
        place[key][rest] = tensor
    return [_unpack_one(part, text) for part, text in zip(by_sample, texts)]


def _unpack_one(part: dict[str, Tensor], text: dict[str, str]) -> ReplaySample:
    logits = attention = None
    if any(name.startswith("logits/") for name in part):
        logits = LogitSignal(
            part["logits/position"].long(),
            part["logits/code"],
            part.get("logits/token"),
            part.get("logits/tail"),
            part.get("logits/offset"),
        )
    if any(name.startswith("attention/") for name in part):
        prefix = "attention/rows/"
        rows = {name.removeprefix(prefix): tensor for name, tensor in part.items() if name.startswith(prefix)}
        attention = AttentionSignal(part["attention/query"].long(), stored_from(rows))
    return ReplaySample(
        prompt=text["prompt"],
        completion=text["completion"],
        ids_L=part["ids"].long(),
        completion_start=int(part["completion_start"]),
        logits=logits,
        attention=attention,
    )


def check_sample(sample: ReplaySample, heads: dict[int, list[int]]) -> None:
    """Makes sure that a sample's tensors fit each other and the task's heads.

    Raises:
        ValueError: saying what does not fit.
    """
    length = len(sample.ids_L)
    fits = {"ids": sample.ids_L.dim() == 1, "completion_start": 0 <= sample.completion_start <= length}
    if sample.logits is not None:
        signal = sample.logits
        fits["logits/position"] = _inside(signal.position_A, length)
        fits["logits/code"] = signal.code_AK.dim() == 2 and len(signal.code_AK) == len(signal.position_A)
        fits["logits/token"] = signal.token_AK is None or (
            signal.token_AK.shape == signal.code_AK.shape and not signal.token_AK.is_floating_point()
        )
        for name, numbers in (("tail", signal.tail_A), ("offset", signal.offset_A)):
            fits[f"logits/{name}"] = numbers is None or numbers.shape == signal.position_A.shape
    if sample.attention is not None:
        query_R, rows = sample.attention.query_R, sample.attention.rows
        fits["attention/query"] = _inside(query_R, length)
        fits["attention/rows"] = rows.check(sum(map(len, heads.values())), len(query_R), length)
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of {sample.prompt[:20]!r} out of place")


def _inside(index_N: Tensor, length: int) -> bool:
    return index_N.dim() == 1 and bool(((index_N >= 0) & (index_N < length)).all())

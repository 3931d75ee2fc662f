"""What the memory keeps of one old example, and how it is laid out as tensors.

Shapes: L tokens of the sample, A stored answer positions, K stored tokens of each, M heads of one layer, R queries.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitSignal:
    """A teacher's next-token distributions at the positions a loss uses.

    Attributes:
        position_A: positions in the sample whose output is distilled.
        logprob_AK: log-probabilities of the K likeliest tokens; all tokens in order when ``token_AK`` is None.
        token_AK: which tokens these are.
    """

    position_A: Tensor
    logprob_AK: Tensor
    token_AK: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionSignal:
    """A teacher's attention rows at the heads and queries chosen for the sample.

    Attributes:
        query_R: query positions in the sample.
        rows: ``{layer: [M, R, L]}`` probabilities, in the order of the task's heads of that layer.
    """

    query_R: Tensor
    rows: dict[int, Tensor]


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


def pack(samples: Iterable[ReplaySample], dtype: torch.dtype) -> dict[str, Tensor]:
    """Samples as named tensors for a safetensors file; floating signals are stored as ``dtype``."""
    tensors: dict[str, Tensor] = {}
    for number, sample in enumerate(samples):
        key = f"{number:06d}"
        tensors[f"{key}/ids"] = sample.ids_L.to(torch.int32)
        tensors[f"{key}/completion_start"] = torch.tensor(sample.completion_start, dtype=torch.int32)
        if sample.logits is not None:
            tensors[f"{key}/logits/position"] = sample.logits.position_A.to(torch.int32)
            tensors[f"{key}/logits/logprob"] = sample.logits.logprob_AK.to(dtype)
            if sample.logits.token_AK is not None:
                tensors[f"{key}/logits/token"] = sample.logits.token_AK.to(torch.int32)
        if sample.attention is not None:
            tensors[f"{key}/attention/query"] = sample.attention.query_R.to(torch.int32)
            for layer, rows_MRL in sample.attention.rows.items():
                tensors[f"{key}/attention/{layer}"] = rows_MRL.to(dtype)
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
        token_AK = part.get("logits/token")
        logits = LogitSignal(
            part["logits/position"].long(),
            part["logits/logprob"].float(),
            None if token_AK is None else token_AK.long(),
        )
    if any(name.startswith("attention/") for name in part):
        layers = sorted(int(name[10:]) for name in part if name.startswith("attention/") and name[10:].isdigit())
        attention = AttentionSignal(
            part["attention/query"].long(), {layer: _renormalised(part[f"attention/{layer}"]) for layer in layers}
        )
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
        position_A, logprob_AK, token_AK = sample.logits.position_A, sample.logits.logprob_AK, sample.logits.token_AK
        fits["logits/position"] = _inside(position_A, length)
        fits["logits/logprob"] = logprob_AK.dim() == 2 and len(logprob_AK) == len(position_A)
        fits["logits/token"] = token_AK is None or token_AK.shape == logprob_AK.shape
    if sample.attention is not None:
        query_R, rows = sample.attention.query_R, sample.attention.rows
        fits["attention/query"] = _inside(query_R, length)
        fits["attention layers"] = rows.keys() == heads.keys()
        for layer in rows.keys() & heads.keys():
            fits[f"attention/{layer}"] = rows[layer].shape == (len(heads[layer]), len(query_R), length)
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of {sample.prompt[:20]!r} out of place")


def _inside(index_N: Tensor, length: int) -> bool:
    return index_N.dim() == 1 and bool(((index_N >= 0) & (index_N < length)).all())


def _renormalised(rows_MRL: Tensor) -> Tensor:
    """Rows as float32; half-precision ones are made to sum to one again, for rounding shifts the divergence's zero."""
    if rows_MRL.dtype == torch.float32:
        return rows_MRL
    rows_MRL = rows_MRL.float()
    return rows_MRL / rows_MRL.sum(-1, keepdim=True)

"""One sample as bytes: its tensors behind one another, and the few numbers that say where each of them is.

Samples of one task differ in shape and, within few kinds, in what they store. A kind names the fields with their types
and numbers of axes; a sample is its kind, its shapes and its bytes.

Shapes: L tokens of the sample.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seekr_cl.attention.stored import stored_from
from seekr_cl.memory.samples import SIGNALS, AttentionSignal, LogitSignal, ReplaySample
from seekr_cl.system.reading import parse_json

TYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""What signals are stored as, by safetensors' names."""
_NAMES = {dtype: name for name, dtype in TYPES.items()}
_ROWS = "rows/"
_MOST_AXES = 4
_WIDEST_NOTHING = 1 << 16
"""Of a tensor without elements, whose shape no number of bytes vouches for."""


class Field(NamedTuple):
    """One tensor of a sample.

    Attributes:
        name: ``ids``, ``logits/...``, or ``attention/...`` or another of ``SIGNALS``; ``learnt`` of samples in which
            other tokens are learnt than all from the completion's first.
        type: a key of ``TYPES``.
        axes: how many.
    """

    name: str
    type: str
    axes: int


Kind = tuple[Field, ...]


class Record(NamedTuple):
    """A sample's signals as they lie in a file.

    Attributes:
        kind: which fields.
        dims: their shapes behind one another.
        content: their bytes behind one another.
    """

    kind: Kind
    dims: list[int]
    content: bytes


def encode(sample: ReplaySample) -> Record:
    """A sample's tensors; large elements come first, so that every one is aligned in a buffer of its own."""
    named = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(sample).items()}
    ordered = sorted(named.items(), key=lambda item: (-item[1].element_size(), item[0]))
    kind = tuple(Field(name, _NAMES[tensor.dtype], tensor.dim()) for name, tensor in ordered)
    dims = [size for _, tensor in ordered for size in tensor.shape]
    content = b"".join(_bytes(tensor) for _, tensor in ordered)
    return Record(kind, dims, content)


def decode(record: Record, text: tuple[str, str], completion_start: int) -> ReplaySample:
    """The sample that ``encode`` laid out.

    Args:
        record: its kind, shapes and bytes.
        text: prompt and completion.
        completion_start: index of the first completion token.

    Raises:
        ValueError: if the bytes are not as many as the shapes need, or the fields not those of a sample.
        KeyError: if a field is missing.
    """
    if record_bytes(record.kind, record.dims) != len(record.content):
        raise ValueError(f"{len(record.content)} bytes do not have the shapes {record.dims}")
    # One copy out of the map, which every tensor looks into: it stays right whatever becomes of the file.
    buffer, at, dims = bytearray(record.content), 0, list(record.dims)
    part: dict[str, Tensor] = {}
    for name, kind, axes in record.kind:
        shape, dims = dims[:axes], dims[axes:]
        dtype, count = TYPES[kind], math.prod(shape)
        if not count and max(shape) > _WIDEST_NOTHING:
            raise ValueError(f"{name} of shape {shape}")
        flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=at) if count else torch.empty(0, dtype=dtype)
        part[name] = flat.reshape(shape)
        at += count * dtype.itemsize
    return _sample(part, text, completion_start)


def record_bytes(kind: Kind, dims: list[int]) -> int:
    """Bytes of a record of these shapes, without allocating any of them."""
    total = 0
    for _, dtype, axes in kind:
        total += math.prod(dims[:axes]) * TYPES[dtype].itemsize
        dims = dims[axes:]
    return total


def num_dims(kind: Kind) -> int:
    """How many numbers say the shapes of a record."""
    return sum(field.axes for field in kind)


def kinds_to_text(kinds: list[Kind]) -> str:
    """The kinds of a file, for its header."""
    return json.dumps([[list(field) for field in kind] for kind in kinds], separators=(",", ":"))


def kinds_from_text(text: Any) -> list[Kind]:
    """What ``kinds_to_text`` wrote.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(text, str):
        raise ValueError("no kinds of samples")
    kinds = [tuple(Field(*field) for field in kind) for kind in parse_json(text)]
    for kind in kinds:
        for name, dtype, axes in kind:
            good = isinstance(name, str) and isinstance(dtype, str) and dtype in TYPES and type(axes) is int
            if not good or not 0 <= axes <= _MOST_AXES:
                raise ValueError(f"no field of a sample: {name!r} {dtype!r} {axes!r}")
        if len({field.name for field in kind}) != len(kind) or ("ids", "I32", 1) not in kind:
            raise ValueError("a kind of sample without token ids or with a field twice")
    return kinds


def pack(samples: Sequence[ReplaySample]) -> dict[str, Tensor]:
    """Samples as named tensors, for a file that is written and read whole."""
    tensors: dict[str, Tensor] = {}
    for number, sample in enumerate(samples):
        start = torch.tensor(sample.completion_start, dtype=torch.int32)
        named = _tensors(sample) | {"completion_start": start}
        tensors |= {f"{number:06d}/{name}": tensor for name, tensor in named.items()}
    return tensors


def unpack(tensors: dict[str, Tensor], texts: Sequence[dict[str, str]]) -> list[ReplaySample]:
    """The samples that ``pack`` laid out, with their prompts and completions.

    Raises:
        KeyError: if a tensor that every sample has is missing, or one is of no sample.
        ValueError: if the tensors of one are not those of a sample.
    """
    parts: dict[str, dict[str, Tensor]] = {f"{number:06d}": {} for number in range(len(texts))}
    for name, tensor in tensors.items():
        key, _, rest = name.partition("/")
        parts[key][rest] = tensor
    samples = []
    for part, text in zip(parts.values(), texts):
        start = int(part.pop("completion_start"))
        samples.append(_sample(part, (text["prompt"], text["completion"]), start))
    return samples


def _tensors(sample: ReplaySample) -> dict[str, Tensor]:
    tensors = {"ids": sample.ids_L.to(torch.int32)}
    if sample.learnt is not None:
        tensors["learnt"] = torch.tensor(sample.learnt, dtype=torch.int32).reshape(-1, 2)
    if sample.logits is not None:
        signal = sample.logits
        tensors |= {"logits/position": signal.position_A.to(torch.int32), "logits/code": signal.code_AK}
        more = {"logits/token": signal.token_AK, "logits/tail": signal.tail_A, "logits/offset": signal.offset_A}
        tensors |= {name: tensor for name, tensor in more.items() if tensor is not None}
    if sample.attention is not None:
        of, rows = sample.attention.of, sample.attention.rows
        tensors[f"{of}/query"] = sample.attention.query_R.to(torch.int32)
        tensors |= {f"{of}/{_ROWS}{name}": tensor for name, tensor in ({} if rows is None else rows.tensors()).items()}
    return tensors


def _sample(part: dict[str, Tensor], text: tuple[str, str], completion_start: int) -> ReplaySample:
    logits = attention = None
    ids_L = part.pop("ids").long()
    spans = part.pop("learnt", None)
    if spans is not None and (spans.dim() != 2 or spans.shape[1] != 2):
        raise ValueError("learnt must be rows of begin and end")
    learnt = None if spans is None else tuple((int(begin), int(end)) for begin, end in spans)
    if any(name.startswith("logits/") for name in part):
        position_A, code_AK = part.pop("logits/position").long(), part.pop("logits/code")
        rest = (part.pop(f"logits/{name}", None) for name in ("token", "tail", "offset"))
        logits = LogitSignal(position_A, code_AK, *rest)
    for of in SIGNALS:
        if any(name.startswith(f"{of}/") for name in part) and attention is None:
            start = f"{of}/{_ROWS}"
            rows = {name.removeprefix(start): part.pop(name) for name in list(part) if name.startswith(start)}
            query_R = part.pop(f"{of}/query").long()
            attention = AttentionSignal(query_R, stored_from(rows) if rows else None, of)
    if part:
        raise ValueError(f"{sorted(part)} unknown")
    return ReplaySample(*text, ids_L, completion_start, logits, attention, learnt)


def _bytes(tensor: Tensor) -> bytes:
    # The one element of a slice may have any stride, with which it could not be viewed as bytes.
    flat = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()

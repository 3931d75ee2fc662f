"""One sample as bytes: its tensors behind one another, and the few numbers that say where each of them is.

Samples of one task differ in shape and, within few kinds, in what they store. A kind names the fields with their types
and numbers of axes; a sample is its kind, its shapes and its bytes.

Shapes: L tokens of the sample.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seekr_cl.memory.samples import ReplaySample
from seekr_cl.memory.signals import SIGNALS
from seekr_cl.system.reading import parse_json
from seekr_cl.tasks.collate import Spans

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
_MOST_AXES = 4
_WIDEST_NOTHING = 1 << 16
"""Of a tensor without elements, whose shape no number of bytes vouches for."""


class Field(NamedTuple):
    """One tensor of a sample.

    Attributes:
        name: ``ids``; one of ``SIGNALS``, a slash, and what that calls it; ``learnt`` of samples in which other tokens
            are learned than all from the completion's first.
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


def decode(record: Record, texts: Callable[[], tuple[str, str]], completion_start: int) -> ReplaySample:
    """The sample that ``encode`` laid out, whose texts ``texts`` reads; ValueError or KeyError if it is not one."""
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
    return ReplaySample.with_texts(texts, completion_start=completion_start, **_parts(part))


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
        samples.append(ReplaySample(text["prompt"], text["completion"], completion_start=start, **_parts(part)))
    return samples


def _tensors(sample: ReplaySample) -> dict[str, Tensor]:
    tensors = {"ids": sample.ids_L.to(torch.int32)}
    if sample.learnt is not None:
        tensors["learnt"] = torch.tensor(sample.learnt, dtype=torch.int32).reshape(-1, 2)
    for kind, signal in sample.signals.items():
        tensors |= {f"{kind}/{name}": tensor for name, tensor in signal.tensors().items()}
    return tensors


def _parts(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Token ids, runs of tokens to learn and signals of a sample."""
    parts = dict[str, dict[str, Tensor]]()
    given: dict[str, Any] = {"ids_L": tensors.pop("ids").long()}
    if "learnt" in tensors:
        given["learnt"] = _spans(tensors.pop("learnt"))
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        parts.setdefault(kind, {})[rest] = tensor
    if unknown := parts.keys() - SIGNALS.keys():
        raise ValueError(f"{sorted(unknown)} unknown")
    return given | {"signals": {kind: SIGNALS[kind].from_tensors(part) for kind, part in parts.items()}}


def _spans(span_N2: Tensor) -> Spans:
    if span_N2.dim() != 2 or span_N2.shape[1] != 2:
        raise ValueError("learnt must be rows of begin and end")
    return tuple((int(begin), int(end)) for begin, end in span_N2)


def _bytes(tensor: Tensor) -> bytes:
    # The one element of a slice may have any stride, with which it could not be viewed as bytes.
    flat = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()

"""What a generation says of itself must be possible: a hash only tells that a file is what somebody wrote.

Nothing is read or allocated here. What samples say is checked when they are read (``samples.check_sample``), and what
does not fit the model when it is there (``check_fits``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory.samples import MemoryTask, ReplaySample, Totals

MOST_BYTES = 1 << 50
"""Of one file."""
MOST_HEADS = 1 << 16
"""Of a layer; also the most layers."""
_GENERATION = frozenset(
    ["generation", "parent", "written", "rewritten", "learnt", "model_sha256", "model_folder", "tokenizer_sha256"]
) | {"method", "versions", "importance", "method_state", "tasks", "dtype"}
_TASK = frozenset({"name", "heads", "info", "totals", "files", "teacher"})
_LEARNT = frozenset({"name", "data_sha256", "forgotten"})
_FILE = frozenset({"file", "bytes", "sha256"})
_SAMPLE_BYTES, _LINE_BYTES, _NUMBER = 48, 40, 4
"""At least: a sample's rows in the tables, a line of text, a token's id or a position."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a model a memory must fit; ``None`` where the model does not say.

    Attributes:
        tokens: rows of the embedding.
        outputs: width of the next token's distribution.
        layers: how many.
        heads: query heads of a layer at the most.
        length: tokens of a sequence.
    """

    tokens: int
    outputs: int
    layers: int | None = None
    heads: int | None = None
    length: int | None = None


def check_generation(content: dict[str, Any]) -> None:
    """Makes sure that a generation, whose values have their types, says nothing that cannot be.

    Raises:
        ValueError: naming the key.
    """
    _known(content, _GENERATION, "the generation")
    for entry in content["learnt"]:
        _known(entry, _LEARNT, "'learnt'")
    if content["parent"] is not None:
        _known(content["parent"], _FILE - {"bytes"}, "'parent'")
    for task in content["tasks"]:
        where = f"task {task['name']!r}"
        _known(task, _TASK, where)
        for file in [*task["files"], *([] if task.get("teacher") is None else [task["teacher"]])]:
            check_file(file, where)
        check_heads({int(layer): heads for layer, heads in task["heads"].items()}, where)
        _check_totals(task["totals"], [file["bytes"] for file in task["files"]], where)
    importance, state = content["importance"], content.get("method_state")
    if importance is not None:
        check_file(importance, "'importance'", {"layers"})
        layers = importance["layers"]
        _require(len(set(layers)) == len(layers) and all(0 <= layer < MOST_HEADS for layer in layers), "'layers'")
    if state is not None:
        check_file(state, "'method_state'", {"method", "content"})


def check_file(record: dict[str, Any], where: str, more: Iterable[str] = ()) -> None:
    """Makes sure of a file's record.

    Raises:
        ValueError: for a key that is none, or more bytes than a file can have.
    """
    _known(record, _FILE | set(more), where)
    _require(record["bytes"] <= MOST_BYTES, f"{where}: {record['bytes']} bytes")


def check_heads(heads: dict[int, list[int]], where: str) -> None:
    """Makes sure that a task's heads are numbers of heads, each there once.

    Raises:
        ValueError: if not.
    """
    for layer, chosen in heads.items():
        good = 0 <= layer < MOST_HEADS and len(set(chosen)) == len(chosen)
        _require(good and all(0 <= head < MOST_HEADS for head in chosen), f"{where}: heads {chosen[:4]} of {layer}")


def check_fits(tasks: Sequence[MemoryTask], importance_layers: Sequence[int], limits: Limits, source: str) -> None:
    """Makes sure that everything a memory says is about this model; every sample is read.

    Args:
        tasks: of the memory.
        importance_layers: those that its head importance is of.
        limits: the model's.
        source: the memory, for messages.

    Raises:
        MemoryFormatError: naming the task and the sample.
    """
    if limits.layers is not None and any(layer >= limits.layers for layer in importance_layers):
        raise _stranger(source, f"head importance of layer {max(importance_layers)}", f"{limits.layers} layers")
    for task in tasks:
        for layer, heads in task.heads.items():
            if limits.layers is not None and layer >= limits.layers:
                raise _stranger(source, f"task {task.name!r}: heads of layer {layer}", f"{limits.layers} layers")
            if limits.heads is not None and max(heads, default=0) >= limits.heads:
                raise _stranger(
                    source, f"task {task.name!r}: head {max(heads)} of layer {layer}", f"{limits.heads} heads a layer"
                )
        for number, sample in enumerate(task.samples):
            if wrong := _beyond(sample, limits):
                raise _stranger(source, f"task {task.name!r}, sample {number}: {wrong[0]}", wrong[1])


def _beyond(sample: ReplaySample, limits: Limits) -> tuple[str, str] | None:
    length = len(sample.ids_L)
    for what, count in (
        ("tokens", length),
        ("positions of its logits", 1 if sample.logits is None else sample.logits.code_AK.numel()),
        ("queries", 1 if sample.attention is None else len(sample.attention.query_R)),
    ):
        if not count:
            return f"no {what}", "to learn from some"
    highest = int(sample.ids_L.max())
    if limits.length is not None and length > limits.length:
        return f"{length} tokens", f"a context of {limits.length}"
    if highest >= limits.tokens:
        return f"token {highest}", f"{limits.tokens} tokens"
    if sample.logits is None:
        return None
    width, token_AK = sample.logits.code_AK.shape[1], sample.logits.token_AK
    if token_AK is None and width > limits.outputs:
        return f"logits of {width} tokens", f"{limits.outputs} tokens"
    if token_AK is not None and int(token_AK.long().max()) >= limits.outputs:
        return f"logits of token {int(token_AK.long().max())}", f"{limits.outputs} tokens"
    return None


def _stranger(source: str, what: str, has: str) -> MemoryFormatError:
    return MemoryFormatError(f"{source}: {what}, but the model has {has}; restore the folder from a copy you trust")


def _check_totals(totals: dict[str, int], sizes: list[int], where: str) -> None:
    names = {field.name for field in fields(Totals)}
    _known(totals, names, f"{where}: totals")
    one = Totals(**totals)
    texts, signals = sizes or (0, 0)
    fits = (
        one.samples * _SAMPLE_BYTES <= signals
        and one.samples * _LINE_BYTES <= texts
        and max(one.tokens, one.positions, one.queries) * _NUMBER <= signals
        and max(one.logits, one.attention) <= one.samples <= one.tokens
        and one.logits <= one.positions
        and one.attention <= one.queries
    )
    _require(fits, f"{where}: totals of {one.samples} samples in {texts} and {signals} bytes")


def _known(record: dict[str, Any], keys: Iterable[str], where: str) -> None:
    if strange := sorted(set(record) - set(keys)):
        raise ValueError(f"{where}: key {strange[0]!r} is unknown")


def _require(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be")

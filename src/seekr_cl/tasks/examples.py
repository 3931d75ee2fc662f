"""One record of a data file becomes one checked example, or an error that names its row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seekr_cl.errors import DataError, nearest

ACCEPTED = "{prompt, completion}, {prompt, answer} or {messages: [{role, content}, ...]}"
_KEYS = ("prompt", "completion", "answer", "messages", "references")


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn or to be tested on.

    Attributes:
        prompt: What the model is shown; empty for ``messages`` until an ``Encoder`` renders it.
        completion: What the model must write; empty for ``messages`` until an ``Encoder`` renders it.
        references: Other accepted answers, for the metrics.
        messages: The turns of a conversation; the last one is the assistant's and is the completion.
        source: Where the example came from, e.g. ``"train.json row 3"``, rows counted from 1.
    """

    prompt: str
    completion: str
    references: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    source: str = ""


def example_from(row: Any, where: str, allow_empty: bool = False) -> Example:
    """Check one record and turn it into an example.

    Args:
        row: The record as read.
        where: The file and row, for error messages and ``Example.source``.
        allow_empty: Accept an empty completion.

    Returns:
        The example.

    Raises:
        DataError: The record is not an object, lacks a key, holds a value of the wrong type, or is empty.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a record must be an object, not {kind_of(row)}; accepted: {ACCEPTED}")
    # Tables give every row every column, so a null cannot be told from a key that is not there.
    row = {key: value for key, value in row.items() if value is not None}
    references = _references(row.get("references", []), where)
    if "messages" in row:
        clash = [key for key in ("prompt", "completion", "answer") if key in row]
        if clash:
            raise DataError(f"{where}: holds both 'messages' and {clash[0]!r}; keep one of the two")
        return Example("", "", references, _messages(row["messages"], where, allow_empty), where)
    if "completion" in row and "answer" in row:
        raise DataError(f"{where}: holds both 'completion' and 'answer'; keep one of the two")
    answer_key = "answer" if "answer" in row else "completion"
    if "prompt" not in row or answer_key not in row:
        missing = "'prompt'" if "prompt" not in row else "'completion' or 'answer'"
        found = ", ".join(str(key) for key in row) or "none"
        hints = (nearest(str(key), _KEYS) for key in row if key not in _KEYS)
        hint = next((hint for hint in hints if hint), "")
        raise DataError(
            f"{where}: no {missing} (null counts as missing); keys found: {found}; accepted: {ACCEPTED}{hint}"
        )
    prompt = _text(row["prompt"], where, "prompt")
    completion = _text(row[answer_key], where, answer_key)
    if not completion and not allow_empty:
        raise DataError(f"{where}: {answer_key!r} is empty; fill it, remove the row, or pass allow_empty=True")
    return Example(prompt, completion, references, None, where)


def kind_of(value: Any) -> str:
    """Name a value's type in the words of a data file rather than of Python.

    Args:
        value: Any value read from a file.

    Returns:
        A short description such as ``"number (7)"``.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"true/false ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def reference_list(value: Any, where: str) -> tuple[str, ...]:
    """Check one row of a ``*_references.json`` file.

    Args:
        value: The row as read.
        where: The file and row, for error messages.

    Returns:
        The accepted answers.

    Raises:
        DataError: The row is not a list of strings, or is empty.
    """
    references = _references(value, where)
    if not references:
        raise DataError(f"{where}: the list of references is empty; give at least one accepted answer")
    return references


def _text(value: Any, where: str, key: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} must be a string, not {kind_of(value)}; put quotes around it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair; no tokenizer can encode it, and it would fail far from here.
        raise DataError(
            f"{where}: {key!r} holds half a surrogate pair at character {error.start + 1}, which is no text; remove it"
        ) from None
    return value


def _references(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'references' must be a list of strings, not {kind_of(value)}; put it in [ ]")
    return tuple(_text(item, where, f"references {number}") for number, item in enumerate(value, 1))


def _messages(value: Any, where: str, allow_empty: bool) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'messages' must be a list of {{role, content}}, not {kind_of(value)}")
    turns: list[dict[str, Any]] = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping):
            raise DataError(f"{where}: message {number} must be {{role, content}}, not {kind_of(turn)}")
        turn = {key: item for key, item in turn.items() if item is not None}
        for key in ("role", "content"):
            if key not in turn:
                raise DataError(f"{where}: message {number} has no {key!r}; every message is {{role, content}}")
            _text(turn[key], where, f"message {number} {key}")
        turns.append(turn)
    if not turns or turns[-1]["role"] != "assistant":
        last = f"not {turns[-1]['role']!r}" if turns else "and the list is empty"
        raise DataError(
            f"{where}: the last message must be the assistant's, {last}; end the list with role 'assistant'"
        )
    if len(turns) == 1:
        raise DataError(f"{where}: nothing comes before the assistant's message; add the message it answers")
    if not turns[-1]["content"] and not allow_empty:
        raise DataError(
            f"{where}: the assistant's last message is empty; fill it, remove the row, or pass allow_empty=True"
        )
    return tuple(turns)

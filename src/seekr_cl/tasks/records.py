"""One record of a data file becomes one checked example, or an error that names its row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.tasks.formats import ACCEPTED, Reading, recognise
from seekr_cl.tasks.keys import check_turn, kind_of

__all__ = ["ACCEPTED", "Example", "example_from", "kind_of", "reference_list"]

_EMPTY = "fill it, remove the row, or set allow_empty=true to teach that nothing is the answer"


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn or to be tested on.

    Attributes:
        prompt: What the model is shown; empty for ``messages`` until an ``Encoder`` renders it.
        completion: What the model must write; empty for ``messages`` until an ``Encoder`` renders it.
        references: Other accepted answers, for the metrics.
        messages: The turns of a conversation; the last one is the assistant's and is the completion.
        source: Where the example came from, e.g. ``"train.json row 3"``, rows counted from 1.
        tools: What the chat template is told may be called.
        chat_template_kwargs: What else the chat template is told, such as ``enable_thinking``.
        shown: How many of the messages only set the scene, as a prompt of messages does: nothing of them is learnt.
        read_as: The name of the format that the record was read as, a key of ``formats.FORMATS``.
    """

    prompt: str
    completion: str
    references: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    source: str = ""
    tools: tuple[Any, ...] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    shown: int = 0
    read_as: str = field(default="", compare=False)


def example_from(row: Any, where: str, allow_empty: bool = False) -> Example:
    """Check one record and turn it into an example.

    Args:
        row: The record as read.
        where: The file and row, for error messages and ``Example.source``.
        allow_empty: Accept an empty completion.

    Returns:
        The example.

    Raises:
        DataError: The record is not an object, has no known format, holds a value of the wrong type or a key that
            would be lost, or is empty.
    """
    return example_of(recognise(row, where), where, allow_empty)


def example_of(reading: Reading, where: str, allow_empty: bool = False) -> Example:
    """Check a record that has been recognised; see :func:`example_from`.

    Args:
        reading: What it was read as.
        where: The file and row.
        allow_empty: Accept an empty completion.

    Returns:
        The example.

    Raises:
        DataError: A value has the wrong type, or is empty.
    """
    record, name = reading.record, reading.read_as
    references = _references(record.get("references", []), where)
    if "messages" in record:
        messages = _messages(record["messages"], where, allow_empty)
        tools, settings = record.get("tools"), record.get("chat_template_kwargs")
        return Example(
            "", "", references, messages, where, None if tools is None else tuple(tools), settings and dict(settings),
            reading.shown, name,
        )  # fmt: skip
    prompt = _text(record["prompt"], where, "prompt")
    completion = _text(record["completion"], where, reading.answer_key)
    if not completion and not allow_empty:
        raise DataError(f"{where}: {reading.answer_key!r} is empty; {_EMPTY}")
    return Example(prompt, completion, references, None, where, read_as=name)


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
        fix = "put quotes around it"
        if isinstance(value, Mapping | list | tuple):
            fix = "write it as the text that is to be learnt, such as its JSON in a string"
        raise DataError(f"{where}: {key!r} must be a string, not {kind_of(value)}; {fix}")
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
        check_turn(turn, f"{where}: message {number}")
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
        raise DataError(f"{where}: the assistant's last message is empty; {_EMPTY}")
    return tuple(turns)

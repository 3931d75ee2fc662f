"""One record of a data file becomes one checked example, or an error that names its row."""

from dataclasses import dataclass, field
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.tasks.formats import ACCEPTED, Reading, recognise
from seekr_cl.tasks.messages import EMPTY, messages_from, template_kwargs_from, tools_from
from seekr_cl.tasks.values import checked_text, kind_of

__all__ = ["ACCEPTED", "Example", "example_from", "example_of", "kind_of", "reference_list"]

TEMPLATE_KWARGS = "chat_template_kwargs"


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn or to be tested on.

    Attributes:
        prompt: What the model is shown; empty for ``messages`` until an ``Encoder`` renders it.
        completion: What the model must write; empty for ``messages`` until an ``Encoder`` renders it.
        references: Other accepted answers, for the metrics.
        messages: The turns of a conversation; the last one is the assistant's.
        source: Where the example came from, e.g. ``"train.json row 3"``, rows counted from 1.
        tools: What the model may call in the conversation, as JSON schemas.
        template_kwargs: What the chat template is told for this conversation, such as ``enable_thinking``.
        read_as: The name of the format that the record was read as, a key of ``formats.FORMATS``.
    """

    prompt: str
    completion: str
    references: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    source: str = ""
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] | None = None
    read_as: str = field(default="", compare=False)

    @property
    def told(self) -> list[Any]:
        """What the chat template is told beside the messages, for hashes; nothing if there is nothing."""
        return [] if self.tools is None and self.template_kwargs is None else [self.tools, self.template_kwargs]


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
    """Check a record that has been recognized; see :func:`example_from`.

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
        turns = messages_from(record["messages"], where, allow_empty)
        tools = tools_from(record["tools"], where) if "tools" in record else None
        kwargs = template_kwargs_from(record[TEMPLATE_KWARGS], where) if TEMPLATE_KWARGS in record else None
        return Example("", "", references, turns, where, tools, kwargs, name)
    prompt = checked_text(record["prompt"], where, "prompt")
    completion = checked_text(record["completion"], where, reading.answer_key)
    if not completion and not allow_empty:
        raise DataError(f"{where}: {reading.answer_key!r} is empty; {EMPTY}")
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


def _references(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'references' must be a list of strings, not {kind_of(value)}; put it in [ ]")
    return tuple(checked_text(item, where, f"references {number}") for number, item in enumerate(value, 1))

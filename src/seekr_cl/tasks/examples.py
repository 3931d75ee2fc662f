"""One record of a data file becomes one checked example, or an error that names its row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seekr_cl.errors import DataError, nearest
from seekr_cl.tasks.messages import messages_from, template_kwargs_from, tools_from
from seekr_cl.tasks.values import checked_text, kind_of

__all__ = ["ACCEPTED", "Example", "example_from", "kind_of", "reference_list"]

ACCEPTED = "{prompt, completion}, {prompt, answer} or {messages: [{role, content}, ...]}"
TEMPLATE_KWARGS = "chat_template_kwargs"
_KEYS = ("prompt", "completion", "answer", "messages", "references")


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
    """

    prompt: str
    completion: str
    references: tuple[str, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None
    source: str = ""
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] | None = None

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
        turns = messages_from(row["messages"], where, allow_empty)
        tools = tools_from(row["tools"], where) if "tools" in row else None
        kwargs = template_kwargs_from(row[TEMPLATE_KWARGS], where) if TEMPLATE_KWARGS in row else None
        return Example("", "", references, turns, where, tools, kwargs)
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
    prompt = checked_text(row["prompt"], where, "prompt")
    completion = checked_text(row[answer_key], where, answer_key)
    if not completion and not allow_empty:
        raise DataError(f"{where}: {answer_key!r} is empty; fill it, remove the row, or pass allow_empty=True")
    return Example(prompt, completion, references, None, where)


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

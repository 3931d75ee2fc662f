"""A record's ``messages``, ``tools`` and ``chat_template_kwargs``, checked before any chat template sees them."""

import json
from collections.abc import Mapping
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.tasks.keys import check_turn
from seekr_cl.tasks.values import checked_text, kind_of

EMPTY = "fill it, remove the row, or set allow_empty=true to teach that nothing is the answer"
WEIGHT = "weight"
"""OpenAI's key of an assistant's message: 0 shows it and does not teach it."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of an assistant's message that hold what it thought; templates read one of them."""


def messages_from(value: Any, where: str, allow_empty: bool = False) -> tuple[dict[str, Any], ...]:
    """Check the turns of a conversation.

    Args:
        value: The record's ``messages``.
        where: The file and row, for error messages.
        allow_empty: Accept an empty last answer.

    Returns:
        The turns, as the chat template will get them: keys that are null are gone, ``content`` is text, a list of
        text parts, or ``None`` beside tool calls.

    Raises:
        DataError: No list of messages, one without role or content, a part that is not text, a last message that is
            not the assistant's, or nothing that may be learned.
    """
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'messages' must be a list of {{role, content}}, not {kind_of(value)}")
    turns = [_message(turn, f"{where}: message {number}") for number, turn in enumerate(value, 1)]
    if not turns or turns[-1]["role"] != "assistant":
        last = f"not {turns[-1]['role']!r}" if turns else "and the list is empty"
        raise DataError(
            f"{where}: the last message must be the assistant's, {last}; end the list with role 'assistant'"
        )
    if len(turns) == 1:
        raise DataError(f"{where}: nothing comes before the assistant's message; add the message it answers")
    if not spoken(turns[-1]) and not turns[-1].get("tool_calls") and not allow_empty:
        raise DataError(f"{where}: the assistant's last message is empty; {EMPTY}")
    if all(turn.get(WEIGHT) == 0 for turn in turns if turn["role"] == "assistant"):
        raise DataError(f"{where}: every assistant message has weight 0, so nothing is learned; remove the row")
    return tuple(turns)


def tools_from(value: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    """Check a record's ``tools``: what the model may call, as JSON schemas in a list or as the text of one.

    Raises:
        DataError: Something else.
    """
    value = _parsed(value, where, "tools")
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'tools' must be a list of JSON schemas, not {kind_of(value)}")
    for number, tool in enumerate(value, 1):
        if not isinstance(tool, Mapping):
            raise DataError(f"{where}: tool {number} must be a JSON schema, not {kind_of(tool)}")
        named = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        if not isinstance(named.get("name"), str):
            raise DataError(f"{where}: tool {number} has no 'name'; every tool is {{type, function: {{name, ...}}}}")
    return tuple(dict(tool) for tool in value) or None


def template_kwargs_from(value: Any, where: str) -> dict[str, Any] | None:
    """Check a record's ``chat_template_kwargs``, such as ``{"enable_thinking": false}``.

    Raises:
        DataError: No mapping.
    """
    value = _parsed(value, where, "chat_template_kwargs")
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: 'chat_template_kwargs' must be an object, not {kind_of(value)}")
    return dict(value) or None


def spoken(turn: Mapping[str, Any]) -> str:
    """A message's text; parts behind one another."""
    content = turn.get("content")
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or ())


def _message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} must be {{role, content}}, not {kind_of(turn)}")
    # Tables give every message every key, so a null cannot be told from a key that is not there.
    checked = {key: item for key, item in turn.items() if item is not None}
    check_turn(checked, where)
    if "role" not in checked:
        raise DataError(f"{where} has no 'role'; every message is {{role, content}}")
    _text(checked["role"], where, "role")
    calls = _calls(checked.pop("tool_calls", None), where)
    if calls:
        if checked["role"] != "assistant":
            raise DataError(f"{where}: {checked['role']!r} has tool_calls; only the assistant calls tools")
        checked["tool_calls"] = calls
    if "content" not in checked and not calls:
        raise DataError(f"{where} has no 'content'; every message is {{role, content}}")
    if "content" not in checked:
        checked["content"] = None
    elif isinstance(checked["content"], list | tuple):
        checked["content"] = [_part(part, f"{where} content: part {n}") for n, part in enumerate(checked["content"], 1)]
    else:
        _text(checked["content"], where, "content")
    for key in REASONING:
        if key in checked:
            _text(checked[key], where, key)
    weight = checked.get(WEIGHT, 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"{where}: 'weight' must be 0 (not learned) or 1, not {weight!r}")
    return checked


def _part(part: Any, where: str) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": _text(part, where, "text")}
    if not isinstance(part, Mapping):
        raise DataError(f"{where} must be {{type: text, text}}, not {kind_of(part)}")
    part = {key: item for key, item in part.items() if item is not None}
    if part.get("type", "text") != "text" or "text" not in part:
        raise DataError(
            f"{where} is of type {part.get('type')!r}; in a list only parts {{type: text, text}} can be learned from"
        )
    if extra := sorted(part.keys() - {"type", "text"}):
        raise DataError(f"{where}: key {extra[0]!r} would be ignored; a part is {{type: text, text}}")
    return {"type": "text", "text": _text(part["text"], where, "text")}


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    value = _parsed(value, where, "tool_calls")
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'tool_calls' must be a list, not {kind_of(value)}")
    calls = []
    for number, call in enumerate(value, 1):
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise DataError(
                f"{where}: tool call {number} has no name; a call is {{type, function: {{name, arguments}}}}"
            )
        if not isinstance(inner.get("arguments", ""), str | Mapping):
            raise DataError(
                f"{where}: the arguments of tool call {number} must be an object or its JSON, "
                f"not {kind_of(inner['arguments'])}"
            )
        calls.append({key: item for key, item in call.items() if item is not None})
    return calls


def _parsed(value: Any, where: str, key: str) -> Any:
    """What a column of text holds as JSON: CSV and many data sets on the Hub have lists and objects so."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise DataError(f"{where}: {key!r} is text, but invalid JSON; give a list or an object") from None


def _text(value: Any, where: str, key: str) -> str:
    place, _, message = where.partition(": message ")
    message = f"message {message}"
    return checked_text(value, place, f"{message} {key}")

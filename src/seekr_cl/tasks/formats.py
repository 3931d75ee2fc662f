"""The shapes in which people keep their data, recognized by a record's keys and turned into one of two.

Whatever the format, what comes out is ``{prompt, completion}`` or ``{messages}``, with ``references``, ``tools`` and
``chat_template_kwargs`` beside them where the record has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seekr_cl.errors import DataError, nearest
from seekr_cl.tasks.keys import check_keys
from seekr_cl.tasks.messages import WEIGHT
from seekr_cl.tasks.values import kind_of

ACCEPTED = (
    "{prompt, completion}, {prompt, answer}, {messages: [{role, content}, ...]}, "
    "{conversations: [{from, value}, ...]}, {instruction, input, output} or {text}; "
    "other names: columns={prompt: question, completion: answer}"
)
_CHAT = ("references", "tools", "chat_template_kwargs", "system")
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
}
# Taori et al., "Stanford Alpaca", 2023: the prompts of the published data, with and without an input.
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A record as it was understood.

    Attributes:
        read_as: The format's name, a key of ``FORMATS``.
        record: ``prompt`` and ``completion``, or ``messages``; and what else the format has a use for.
        unused: Keys that nothing is made of.
        answer_key: What the record calls its answer, for error messages.
    """

    read_as: str
    record: dict[str, Any]
    unused: tuple[str, ...] = ()
    answer_key: str = "completion"


def recognise(row: Any, where: str) -> Reading:
    """Find out which format a record has, and read it as that.

    Args:
        row: The record as read, its columns renamed already.
        where: The file and row, for error messages.

    Returns:
        What it was read as; its texts are not checked yet.

    Raises:
        DataError: The record is not an object, has no known format, mixes two, or holds a key that would be lost.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a record must be an object, not {kind_of(row)}; accepted: {ACCEPTED}")
    # Tables give every row every column, so a null cannot be told from a key that is not there.
    row = {key: value for key, value in row.items() if value is not None}
    for name, one in FORMATS.items():
        if one.marks <= row.keys() and (one.fits is None or one.fits(row)):
            clash = [key for key in one.clashes if key in row]
            if clash:
                raise DataError(f"{where}: holds both {one.key!r} and {clash[0]!r}; keep one of the two")
            unused = check_keys(row, one.keys, where, name)
            return one.read(name, row, where, unused)
    raise DataError(_unknown(row, where))


def _unknown(row: Mapping[str, Any], where: str) -> str:
    missing = "'prompt'" if "prompt" not in row else "'completion' or 'answer'"
    if "instruction" in row and "prompt" not in row:
        missing = "'output'"
    found = ", ".join(str(key) for key in row) or "none"
    known = ("prompt", "completion", "answer", "messages", "conversations", "instruction", "output", "text")
    hints = (nearest(str(key), known) for key in row if key not in known)
    hint = next((hint for hint in hints if hint), "")
    return f"{where}: no {missing} (null counts as missing); keys found: {found}; accepted: {ACCEPTED}{hint}"


def _pair(name: str, row: dict[str, Any], where: str, unused: tuple[str, ...]) -> Reading:
    answer = "answer" if "answer" in row else "completion"
    record = {"prompt": row["prompt"], "completion": row[answer], **_of(row, "references")}
    return Reading(name, record, unused, answer_key=answer)


def _conversational_pair(name: str, row: dict[str, Any], where: str, unused: tuple[str, ...]) -> Reading:
    answer = "answer" if "answer" in row else "completion"
    for key in ("prompt", answer):
        if not isinstance(row[key], list | tuple):
            raise DataError(
                f"{where}: {key!r} must be a list of {{role, content}} too, not {kind_of(row[key])}: prompt and "
                "completion are both messages or both strings"
            )
    # What the prompt holds of the assistant is shown and not learned.
    shown = [{**turn, WEIGHT: 0} if _is_assistant(turn) else turn for turn in row["prompt"]]
    return _with_system(Reading(name, {"messages": [*shown, *row[answer]], **_of(row, *_CHAT)}, unused), where)


def _is_assistant(turn: Any) -> bool:
    return isinstance(turn, Mapping) and turn.get("role") == "assistant"


def _messages(name: str, row: dict[str, Any], where: str, unused: tuple[str, ...]) -> Reading:
    return _with_system(Reading(name, {"messages": row["messages"], **_of(row, *_CHAT)}, unused), where)


def _sharegpt(name: str, row: dict[str, Any], where: str, unused: tuple[str, ...]) -> Reading:
    turns = row["conversations"]
    if not isinstance(turns, list | tuple):
        raise DataError(f"{where}: 'conversations' must be a list of {{from, value}}, not {kind_of(turns)}")
    messages = [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, 1)]
    return _with_system(Reading(name, {"messages": messages, **_of(row, *_CHAT)}, unused), where)


def _turn(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} must be {{from, value}}, not {kind_of(turn)}")
    turn = {key: value for key, value in turn.items() if value is not None}
    if "from" not in turn and "role" in turn:
        return turn
    for key in ("from", "value"):
        if key not in turn:
            raise DataError(f"{where} has no {key!r}; every turn is {{from, value}}{nearest(key, turn)}")
    role = _ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        known = ", ".join(_ROLES)
        raise DataError(f"{where}: 'from' is {turn['from']!r}; known: {known}{nearest(str(turn['from']), _ROLES)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": role, "content": turn["value"], **rest}


def _alpaca(name: str, row: dict[str, Any], where: str, unused: tuple[str, ...]) -> Reading:
    for key in ("instruction", "input"):
        if not isinstance(row.get(key, ""), str):
            raise DataError(f"{where}: {key!r} must be a string, not {kind_of(row[key])}; put quotes around it")
    template = ALPACA_INPUT if row.get("input", "").strip() else ALPACA
    prompt = template.format(instruction=row["instruction"], input=row.get("input", ""))
    record = {"prompt": prompt, "completion": row["output"], **_of(row, "references")}
    return Reading(name, record, unused, answer_key="output")


def _text(name: str, row: dict[str, Any], where: str, unused: tuple[str, ...]) -> Reading:
    return Reading(name, {"prompt": "", "completion": row["text"]}, unused, answer_key="text")


def _of(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys if key in row}


def _with_system(reading: Reading, where: str) -> Reading:
    """Puts a ``system`` beside the messages in front of them; an empty list of tools is none."""
    record = reading.record
    system = record.pop("system", "")
    if not isinstance(system, str):
        raise DataError(f"{where}: 'system' must be a string, not {kind_of(system)}; put quotes around it")
    for key in ("tools", "chat_template_kwargs"):
        if not record.get(key):
            record.pop(key, None)
    turns = record["messages"]
    if not system or not isinstance(turns, list | tuple):
        return reading
    if turns and isinstance(turns[0], Mapping) and turns[0].get("role") in ("system", "developer"):
        raise DataError(f"{where}: holds 'system' and a first message of role {turns[0]['role']!r}; keep one of them")
    record["messages"] = [{"role": "system", "content": system}, *turns]
    return reading


@dataclass(frozen=True, slots=True)
class _Format:
    """How one format is told from others.

    Attributes:
        key: The key that says so.
        marks: The keys that must be there.
        keys: All that have a meaning in it.
        read: Turns a record into a ``Reading``.
        clashes: Keys that cannot be there too.
        fits: Whether a record that has the marks is of this format, where these do not decide.
    """

    key: str
    marks: frozenset[str]
    keys: tuple[str, ...]
    read: Callable[[str, dict[str, Any], str, tuple[str, ...]], Reading]
    clashes: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] | None = None


def _holds_messages(row: Mapping[str, Any]) -> bool:
    values = [row[key] for key in ("prompt", "completion", "answer") if key in row]
    return any(isinstance(one, list | tuple) and one and isinstance(one[0], Mapping) for one in values)


def _format(key: str, marks: str, keys: str, read: Any, clashes: str = "", fits: Any = None) -> _Format:
    return _Format(key, frozenset(marks.split()), tuple(keys.split()), read, tuple(clashes.split()), fits)


_CHAT_KEYS = " ".join(_CHAT)
_OTHERS = "messages conversations instruction"
FORMATS: dict[str, _Format] = {
    "messages": _format(
        "messages", "messages", f"messages {_CHAT_KEYS}", _messages,
        "prompt completion answer conversations instruction",
    ),
    "sharegpt": _format(
        "conversations", "conversations", f"conversations {_CHAT_KEYS}", _sharegpt,
        "prompt completion answer instruction",
    ),
    "conversational prompt-completion": _format(
        "prompt", "prompt completion", f"prompt completion {_CHAT_KEYS}", _conversational_pair,
        f"answer {_OTHERS}", _holds_messages,
    ),
    "conversational prompt-answer": _format(
        "prompt", "prompt answer", f"prompt answer {_CHAT_KEYS}", _conversational_pair,
        f"completion {_OTHERS}", _holds_messages,
    ),
    "prompt-completion": _format(
        "completion", "prompt completion", "prompt completion references", _pair, f"answer {_OTHERS}"
    ),
    "prompt-answer": _format("answer", "prompt answer", "prompt answer references", _pair, _OTHERS),
    "alpaca": _format(
        "instruction", "instruction output", "instruction input output references", _alpaca, "prompt completion answer"
    ),
    "text": _format("text", "text", "text", _text, "prompt completion answer instruction output"),
}  # fmt: skip
"""Every format by name, in the order in which they are tried."""

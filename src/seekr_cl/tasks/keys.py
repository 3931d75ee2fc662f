"""Keys of a record that its format has no use for: harmless ones are named once, the others are refused."""

from collections.abc import Mapping
from typing import Any

from rapidfuzz.distance import OSA

from seekr_cl.errors import DataError


class DataWarning(UserWarning):
    """Something in the data is not used, or is not what the model will see."""


_INSTEAD = {
    **dict.fromkeys(
        ("weight", "weights", "sample_weight", "loss_weight", "example_weight"),
        "every example weighs the same here; leave out the rows that are not to be learnt",
    ),
    **dict.fromkeys(
        ("train", "training", "trainable", "learn", "train_on_turn", "loss", "loss_mask", "mask", "masked", "ignore"),
        "what is learnt is the completion or the assistant's turns; split the conversation where learning shall begin",
    ),
    **dict.fromkeys(
        ("label", "labels", "chosen", "rejected", "reward", "margin", "score_chosen", "score_rejected"),
        "training is on completions, not on preferences or labels; keep the rows to be learnt",
    ),
    **dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids", "position_ids", "assistant_masks", "completion_mask"),
        "texts are tokenised here; give them as text",
    ),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios", "pixel_values"),
        "models are taught text alone; leave out rows that need more",
    ),
    **dict.fromkeys(("system", "system_prompt"), "write it into the prompt, or use 'messages' with a system turn"),
    **dict.fromkeys(("history",), "write the conversation as 'messages'"),
    **dict.fromkeys(
        ("tools", "functions", "chat_template_kwargs", "documents"), "only 'messages' go through a chat template"
    ),
    **dict.fromkeys(("chat_template",), "set the tokenizer's chat template instead"),
    **dict.fromkeys(
        ("reasoning", "reasoning_content", "thinking"),
        "it would not be shown to the model; write it into the prompt or the answer",
    ),
    **dict.fromkeys(("function_call", "tool_calls"), "write it as 'tool_calls' of the assistant's message"),
}
"""Keys that say what is shown or learned, and what to do where a format has no use for them."""

_CHAT_INSTEAD = {
    "functions": "write them as 'tools'",
    "documents": "write them into a message",
    "system_prompt": "write it as a system turn",
}
_NEUTRAL = {
    **dict.fromkeys(("weight", "sample_weight", "loss_weight", "example_weight"), (1,)),
    **dict.fromkeys(("train", "training", "trainable", "learn", "train_on_turn", "loss"), (True,)),
    **dict.fromkeys(("ignore", "masked"), (False,)),
}
_TURN = (
    *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"),
    *("tools", "weight"),
)
_TURN_INSTEAD = ("image", "images", "video", "videos", "audio", "audios", "input_ids", "labels", "label")


def check_keys(row: Mapping[Any, Any], known: tuple[str, ...], where: str, name: str) -> tuple[str, ...]:
    """The keys of a record that its format has no use for.

    Args:
        row: The record, without nulls.
        known: The format's keys.
        where: The file and row, for error messages.
        name: The format's name.

    Raises:
        DataError: One of them would change what is shown or learned, or is one letter away from a key that has a use.
    """
    unused = []
    for key in row:
        if key in known:
            continue
        if not isinstance(key, str):
            raise DataError(f"{where}: the key {key!r} is not text; name every column")
        _refuse_meaning(row, key, known, where, name)
        if close := _slip(key, known, row):
            raise DataError(f"{where}: unknown key {key!r} of a record read as {name}; did you mean {close!r}?")
        unused.append(key)
    return tuple(unused)


def _refuse_meaning(row: Mapping[Any, Any], key: str, known: tuple[str, ...], where: str, name: str) -> None:
    instead = _INSTEAD.get(key.lower())
    if instead is None or row[key] in ("", [], {}) or _is_neutral(key, row[key]):
        return
    if "messages" in known or "conversations" in known:
        instead = _CHAT_INSTEAD.get(key, instead)
    raise DataError(f"{where}: {key!r} would be ignored: a record read as {name} has no use for it; {instead}")


def check_turn(turn: Mapping[Any, Any], where: str) -> None:
    """Refuses keys of a message that say what is shown or learned and that nothing would come of.

    Any other key is the chat template's to read.

    Raises:
        DataError: naming the key, and the nearest that has a use.
    """
    for key, value in turn.items():
        if key in _TURN:
            continue
        if not isinstance(key, str):
            raise DataError(f"{where}: the key {key!r} is not text; every message is {{role, content}}")
        learnt = key in _NEUTRAL or key in ("mask", "loss_mask", "weights")
        if (learnt and not _is_neutral(key, value)) or (key in _TURN_INSTEAD and value not in ("", [], {})):
            raise DataError(f"{where}: {key!r} would be lost; {_INSTEAD[key]}")
        if close := _slip(key, _TURN, turn):
            raise DataError(f"{where}: unknown key {key!r}; did you mean {close!r}?")


def _is_neutral(key: str, value: Any) -> bool:
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in _NEUTRAL.get(key, ()))


def _slip(key: str, known: tuple[str, ...], present: Mapping[Any, Any]) -> str | None:
    """The absent key that this one is a slip of the hand from: short words have too many neighbors."""
    least = min(
        ((OSA.distance(key.lower(), one), one) for one in known if len(one) > 4 and one not in present),
        default=(9, ""),
    )
    return least[1] if least[0] <= (1 if len(least[1]) < 8 else 2) else None

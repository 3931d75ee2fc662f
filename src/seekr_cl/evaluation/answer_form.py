"""Whether answers have the form they should, whatever they say: ended by the model, thinking closed, JSON.

A model can lose its form before it loses what it knows, and the reverse; a score mixes the two.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FAULTS = {
    "cut": "the answer fills max_new_tokens, so the model did not end it",
    "thinking": "a think block was opened and not closed",
    "json": "the references are JSON objects or lists, and the answer is no JSON",
}
"""What may be wrong with an answer's form, by the word that predictions have for it."""
_OPEN, _CLOSE = "<think>", "</think>"


def faults_of(answer: str, scored: str, prompt: str, *, cut: bool, wants_json: bool) -> list[str]:
    """What is wrong with one answer's form.

    Args:
        answer: all that was generated.
        scored: the part of it that was scored.
        prompt: what was asked; a template may open the think block there.
        cut: whether it fills ``max_new_tokens``.
        wants_json: whether the task's answers are JSON.

    Returns:
        Keys of ``FAULTS``.
    """
    begun = prompt.rstrip().endswith(_OPEN) or _OPEN in answer
    found = {
        "cut": cut,
        "thinking": begun and answer.rfind(_OPEN) >= answer.rfind(_CLOSE),
        "json": wants_json and not is_json(scored),
    }
    return [name for name, wrong in found.items() if wrong]


def wants_json(references: Sequence[Sequence[str]]) -> bool:
    """Whether every accepted answer of a task is a JSON object or list; a number or word alone is no sign of JSON."""
    texts = [text for accepted in references for text in accepted]
    return bool(texts) and all(text.lstrip()[:1] in ("{", "[") and is_json(text) for text in texts)


def is_json(text: str) -> bool:
    """Whether a text is one JSON value, spaces and a Markdown fence around it aside."""
    plain = text.strip()
    if plain.startswith("```") and plain.endswith("```") and len(plain) > 6:
        plain = plain[3:-3].removeprefix("json")
    try:
        json.loads(plain, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def summary(faults: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Of a task's answers the share without any fault, in percent, and how many have each."""
    rows = list(faults)
    valid = sum(not row for row in rows)
    counts = {name: sum(name in row for row in rows) for name in FAULTS}
    return {"valid": round(100 * valid / len(rows), 4) if rows else 0.0, "answers": len(rows)} | counts


def mean_valid(tasks: Mapping[str, Any]) -> float | None:
    """The mean share of valid answers over tasks, as ``summary`` gives them; None where former versions wrote none."""
    shares = [
        one["valid"] for one in tasks.values() if isinstance(one, Mapping) and isinstance(one.get("valid"), float)
    ]
    return sum(shares) / len(shares) if shares and len(shares) == len(tasks) else None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")

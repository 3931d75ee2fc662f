"""Which part of what a model wrote is its answer: some benchmarks train on a rationale and do not score it."""

from collections.abc import Callable

from seekr_cl.errors import ConfigError, nearest


def whole(text: str) -> str:
    """Everything, as it was written."""
    return text


def trace(text: str) -> str:
    """The answer without its rationale, as SEEKR's evaluation of TRACE splits it.

    Full-width colons count as colons. Code comes before its ``Reasoning:`` line; everything else comes after an
    ``Answer:``, ``回答:`` or ``答案:`` line and ends before the next one. Without such a line all of it is the answer.
    A line is one only if something, even an empty line, comes before it.
    """
    text = text.replace("：", ":")
    before, marker, _ = text.partition("\nReasoning:")
    if marker:
        return before.strip()
    for marker in ("\nAnswer:", "\n回答:", "\n答案:"):
        if marker in text:
            return text.split(marker, 2)[1].strip()
    return text.strip()


EXTRACTIONS: dict[str, Callable[[str], str]] = {"whole": whole, "trace": trace}


def get_extraction(name: object) -> Callable[[str], str]:
    """The function of that name.

    Raises:
        ConfigError: naming the nearest known one.
    """
    if not isinstance(name, str) or name not in EXTRACTIONS:
        known = ", ".join(EXTRACTIONS)
        raise ConfigError(f"extract: {name!r} is unknown{nearest(str(name), EXTRACTIONS)} (known: {known})")
    return EXTRACTIONS[name]

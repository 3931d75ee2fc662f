"""The environment: whole numbers that a launcher leaves in it, and what libraries write into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from seekr_cl.errors import ConfigError


def whole_number(text: str | None) -> int | None:
    """The number that a text spells, if it is one of 0 and above."""
    return int(text) if text and text.strip().isascii() and text.strip().isdigit() else None


def environment_number(name: str, default: int) -> int:
    """A launcher's variable; ``default`` where it is not set or empty.

    Raises:
        ConfigError: if it is not a whole number of 0 or above.
    """
    text = os.environ.get(name)
    if not text:
        return default
    number = whole_number(text)
    if number is None:
        raise ConfigError(f"{name}: {text!r} in the environment is not a whole number; unset it, or use --launch")
    return number


@contextmanager
def noting_changes() -> Iterator[dict[str, str | None]]:
    """Gives a mapping that holds, afterwards, the former value of every variable that was written meanwhile."""
    before, changes = dict(os.environ), dict[str, str | None]()
    try:
        yield changes
    finally:
        changes |= {key: before.get(key) for key, value in os.environ.items() if before.get(key) != value}


def take_back(changes: dict[str, str | None]) -> None:
    """Gives variables their former values."""
    for key, value in changes.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@contextmanager
def untouched_by_refusal() -> Iterator[dict[str, str | None]]:
    """``noting_changes``, and what was written is taken back if what is done here raises.

    transformers writes settings such as ``fsdp`` and ``torch_compile`` into the environment, where the next config
    would find them.
    """
    changes: dict[str, str | None] = {}
    try:
        with noting_changes() as changes:
            yield changes
    except BaseException:
        take_back(changes)
        raise

"""Whole numbers that a launcher leaves in the environment."""

import os

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

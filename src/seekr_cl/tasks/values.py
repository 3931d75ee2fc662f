"""Values of a data file: what kind they are, and texts that can be encoded."""

from collections.abc import Mapping
from typing import Any

from seekr_cl.errors import DataError


def kind_of(value: Any) -> str:
    """Name a value's type in the words of a data file rather than of Python.

    Args:
        value: Any value read from a file.

    Returns:
        A short description such as ``"number (7)"``.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"true/false ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def checked_text(value: Any, where: str, key: str) -> str:
    """A string that can be encoded, or an error that names the key.

    Raises:
        DataError: No string, or one with half a surrogate pair.
    """
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
            f"{where}: {key!r} holds half a surrogate pair at character {error.start + 1}, which is not text; remove it"
        ) from None
    return value

"""Guess which known word a user meant, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a hint such as ``"; did you mean 'epochs'?"`` to append to an error message.

    Args:
        key: The word that was given.
        known: The words that would have been accepted.

    Returns:
        The hint, or an empty string when no known word is close enough to be worth guessing.
    """
    by_lower = {str(word).lower(): str(word) for word in known}
    found = difflib.get_close_matches(str(key).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""

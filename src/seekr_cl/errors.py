"""Errors a user can cause and fix.

Every message is one line that names the file, row or key and says what to do. The command line prints it
without a traceback and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class SeekrError(ValueError):
    """Base of every error raised for bad input; catching ``ValueError`` catches all of them."""


class ConfigError(SeekrError):
    """A key, value or combination of settings that cannot be honored."""


class DataError(SeekrError):
    """A task's files are missing, unreadable, empty or of the wrong shape."""


class TooLongError(DataError):
    """An example whose answer does not fit, which ``long_completions: skip`` leaves out."""


class MemoryFormatError(SeekrError):
    """A replay memory is damaged, of a newer format, or belongs to another model or tokenizer."""


class ModelError(SeekrError):
    """A model or tokenizer that cannot be loaded or cannot be used by the chosen method."""


class TrainingError(SeekrError):
    """Training that cannot go on, such as a NaN or infinite loss; what was there before stays."""


class OutputError(SeekrError):
    """An output folder that already holds something, or that cannot be written."""


class OutputWarning(UserWarning):
    """Something beside the results that could not be written or removed; the results themselves are safe."""


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


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing. For messages made of other libraries' errors."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

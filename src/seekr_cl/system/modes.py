"""Who may read files that hold somebody's texts: their owner alone, unless ``memory.mode`` says otherwise.

Such files are a memory's, a checkpoint's, predictions, journals of answers and exported archives. The mode is that of
files; a folder that is made for them can be entered by whoever may read them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError

OWNER_ALONE = 0o600
_MODE = ContextVar("mode", default=OWNER_ALONE)


def parse_mode(key: str, value: Any) -> int:
    """Permissions from a setting: text such as ``0640``, or the number that YAML makes of an unquoted 0640.

    Raises:
        ConfigError: if it is none, if the owner could not read and write, or if it made a file executable.
    """
    number = -1
    if isinstance(value, str) and re.fullmatch(r"(0o?)?[0-7]{3}", value.strip()):
        number = int(value.strip().removeprefix("0o"), 8)
    elif type(value) is int:
        number = value
    if not 0 <= number <= 0o666 or number & 0o600 != 0o600 or number & 0o111:
        raise ConfigError(
            f"{key}: {value!r} is not a mode of files that their owner can read and write; write 0600, 0640 or 0644"
        )
    return number


@contextmanager
def files_of_mode(mode: int) -> Iterator[None]:
    """Files with texts get this mode for the length of a ``with`` block."""
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


@contextmanager
def files_like(path: Path) -> Iterator[None]:
    """Files with texts get the mode of a file that is there; without it they stay what they were to be."""
    mode = _MODE.get()
    with suppress(OSError):
        mode = path.stat().st_mode & 0o666 | OWNER_ALONE
    with files_of_mode(mode):
        yield


def file_mode() -> int:
    """The mode of a file with texts."""
    return _MODE.get()


def folder_mode() -> int:
    """The mode of a folder of such files: whoever may read these may enter it."""
    mode = _MODE.get()
    return mode | (mode & 0o444) >> 2


def make_private(folder: Path) -> None:
    """Makes a folder for files with texts, if it is not there; one that is there keeps its own mode.

    Raises:
        OSError: if it cannot be made.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chmod(folder, folder_mode())

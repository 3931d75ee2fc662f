"""Paths as people write them, on a command line or in a YAML file."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from seekr_cl.errors import ConfigError, DataError

_DIGITS = re.compile("[0-9]+")


def at_home(path: str | Path) -> Path:
    """The path with ``~`` as the home folder; that of a user nobody knows stays as it is.

    Raises:
        DataError: if it cannot be a path, as one that is too long.
    """
    found = Path(os.path.expanduser(path))
    try:
        found.exists()
    except OSError as error:
        shown = str(path) if len(str(path)) < 80 else f"{str(path)[:80]}..."
        raise DataError(f"{shown}: cannot be a path ({error.strerror}); write another one") from error
    return found


def beside(folder: Path, path: str, where: str) -> Path:
    """Resolve a path of a YAML file: beside the file, or from the working folder where only that exists.

    Raises:
        ConfigError: if it cannot be a path, saying ``where`` it is written.
    """
    try:
        own = at_home(folder / at_home(path))
    except DataError as error:
        raise ConfigError(f"{where}: {error}") from error
    return Path(path) if not own.exists() and Path(path).exists() else own


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Folders of a run by the number that their names begin with: as text, ``100-x`` comes before ``11-x``."""

    def key(path: Path) -> tuple[int, str]:
        digits = _DIGITS.match(path.name)
        return int(digits[0]) if digits else 0, path.name

    return sorted(paths, key=key)

"""JSON files that a command of this library left in its output."""

from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.system import reading


def read_own(path: Path, command: str = "run") -> dict[str, Any]:
    """The object in a file.

    Args:
        path: the file.
        command: whose output it should lie in, for the message.

    Raises:
        DataError: naming the file, if it is missing, damaged or no object.
    """
    try:
        content = reading.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}); name the --output folder of a seekr {command}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a file of this library; name the --output folder of a seekr {command}")
    return content

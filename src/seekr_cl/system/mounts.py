"""Folders that something is mounted on: what is written beside one cannot be renamed into its place."""

import re
from pathlib import Path

from seekr_cl.errors import OutputError


def refuse_mount(path: Path) -> None:
    """Refuses a folder that something is mounted on, as a container's volume: nothing can be renamed into its place.

    Raises:
        OutputError: naming a folder in it that would do.
    """
    place = path.resolve()
    if place.is_dir() and (place.is_mount() or str(place) in _mounts()):
        raise OutputError(
            f"{path}: is a mount point, which no finished folder can replace; name a folder in it: {path / 'NAME'}"
        )


def _mounts() -> set[str]:
    """What is mounted where; ``is_mount`` misses a folder bound from the same file system."""
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    octal = re.compile(r"\\([0-7]{3})")
    points = (line.split(" ")[4] for line in text.splitlines() if line.count(" ") > 4)
    return {octal.sub(lambda code: chr(int(code[1], 8)), point) for point in points}

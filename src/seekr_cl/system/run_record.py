"""What a run, a learning or an evaluation writes down while it goes: a line of JSON for each event.

    {"event": "begin", "time": 1.7e9, "kind": "run", "method": "seekr", "tasks": [...], "command": [...], ...}
    {"event": "phase", "time": ..., "phase": "train", "task": "yelp", "number": 2, "of": 5}
    {"event": "training", "time": ..., "task": "yelp", "number": 2, "steps": 135, "replayed": [...], "bin_steps": 1}
    {"event": "log", "time": ..., "values": {"step": 10, "loss_task": 1.2, "share_task": 0.7, ...}}
    {"event": "progress", "time": ..., "done": 40, "total": 135, "tokens_per_second": 5100.0}
    {"event": "end", "time": ...}

It is about what a report or ``seekr watch`` shows and nothing else: no run is resumed from it, and one that cannot be
written is a warning. It holds no text of the data. A resumed command adds to it.
"""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seekr_cl.system import reading

RECORD = "record.jsonl"
_LARGEST = 1 << 28
_START = b'{"event":"begin"'
_MOST = 2**53
"""Above this a float is no exact count."""


_command: list[str] = []


def set_command(words: Sequence[str]) -> None:
    """The command line of this process, so that what it makes can say how it is made again."""
    _command[:] = words


def given_command() -> list[str]:
    """The command line of this process; empty where it is not a command of this library."""
    return list(_command)


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events of a record, in order.

    Args:
        path: the file; it may be written to at this moment.

    Returns:
        The events, and how many lines are none. A last line that is being written counts as neither.

    Raises:
        OSError: if the file cannot be read.
    """
    lines = reading.json_lines(reading.read_bytes(path, _LARGEST))
    events = [event for line in lines if is_event(event := parse_event(line))]
    return events, len(lines) - len(events)


def parse_event(line: bytes) -> Any:
    """A line's JSON; ``None`` if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def is_event(event: Any) -> bool:
    """Whether it is what this module writes."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return False
    return is_finite(event.get("time"))


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold: its integers have no end."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def number(value: Any) -> float:
    """A value of a record as a number; 0 for what is none, or none that is finite."""
    return float(value) if is_finite(value) else 0.0


def count(value: Any) -> int:
    """A value of a record as a number of things; 0 for what counts nothing."""
    found = number(value)
    return int(found) if 0 <= found <= _MOST else 0


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Adds an event; its folder is there.

    Raises:
        OSError: if it cannot be written.
    """
    line = json.dumps(event, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)


def is_record(path: Path) -> bool:
    """Whether a file begins as a record does."""
    if path.is_symlink() or not path.is_file():
        return False
    with suppress(OSError), open(path, "rb") as file:
        return file.read(len(_START)) == _START
    return False


def beside(output: Path) -> Path:
    """Where the record of a learning is until the model's folder is there to hold it."""
    return output.parent / f"{output.name}.{RECORD}"


def record_of(folder: Path) -> Path | None:
    """The record of a run, of a learning that is done, or of one that goes on; ``None`` if there is none."""
    # The first is looked for again, since the second moves there when a learning is done.
    places = (folder / RECORD, beside(folder), folder / RECORD)
    return next((place for place in places if place.is_file()), None)


def moved(path: Path) -> Path | None:
    """Where a record is that lay beside its output and no longer does; ``None`` if it is nowhere."""
    return record_of(path.with_name(path.name.removesuffix(f".{RECORD}"))) if path.name != RECORD else None

"""Reading files that may be anybody's: only regular ones of a sane size, and JSON that cannot fill the memory.

What is refused comes as ``OSError`` or ``ValueError`` with a short reason, as what the system and the parser refuse
does; callers name the file and what to do.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable
from io import BufferedReader
from typing import Any

LARGEST_JSON = 1 << 26
"""Bytes of a JSON file that is read whole: a manifest from a stranger must not fill the RAM."""
MOST_VALUES = 4_000_000
"""Values in such a file; each takes some 60 bytes once it is read."""
MOST_CONTAINERS = 1_000_000
LARGEST_NUMBER = (1 << 63) - 1
_BOM = b"\xef\xbb\xbf"
_SMALL = 1 << 20
_SPARSE = 200
"""How many times the bytes it has on the disk a file may claim; no file system compresses text that well."""
_MOST_EXTENTS = 10_000
_LEAST_RECORD = 8
"""Characters of a text of JSON for each of its lists and objects: of records with text in them there are many more."""
_IN_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')


def open_plain(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a regular file for reading, without waiting for anybody on the other end of a pipe.

    Raises:
        OSError: if it cannot be opened, or is a pipe, a device, a folder or all hole.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(handle)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if _is_hollow(handle, state):
            raise OSError(errno.EFBIG, f"a sparse file, {state.st_size} bytes of almost nothing", str(path))
    except BaseException:
        os.close(handle)
        raise
    return open(handle, "rb")


def read_bytes(path: str | os.PathLike[str], limit: int | None = LARGEST_JSON) -> bytes:
    """A regular file's content.

    Args:
        path: the file.
        limit: bytes it may have at most; ``None`` for a user's own data, which may be of any size.

    Raises:
        OSError: if it cannot be read, is not a regular file or is too large.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if limit is not None and size > limit else file.read(-1 if limit is None else limit + 1)
    if limit is not None and max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"{max(size, len(content))} bytes are too many, the limit is {limit}", str(path))
    return content


def read_text(path: str | os.PathLike[str], limit: int | None = LARGEST_JSON) -> str:
    """A regular file's text in UTF-8, without a byte order mark.

    Raises:
        OSError: as ``read_bytes``.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_bytes(path, limit).removeprefix(_BOM).decode("utf-8")


def read_json(path: str | os.PathLike[str], limit: int = LARGEST_JSON, bounded: bool = True) -> Any:
    """A regular file's JSON.

    Raises:
        OSError: as ``read_bytes``.
        ValueError: as ``parse_json``.
    """
    return parse_json(read_text(path, limit), bounded=bounded)


def parse_json(
    text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None, bounded: bool = True
) -> Any:
    """JSON that cannot take much more memory than its text, and no number that others cannot hold.

    Args:
        text: the JSON.
        pairs: makes an object of its keys and values; default a ``dict``.
        bounded: refuse numbers beyond 64 bits, NaN and infinity; tokenizers have 1e30 as the longest text.

    Raises:
        ValueError: if it is broken, nested too deeply, of too many values, or has a number beyond 64 bits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if len(text) > _SMALL:
        _require_few(text)
    try:
        return json.loads(
            text,
            parse_int=_whole if bounded else None,
            parse_float=_real if bounded else None,
            parse_constant=_refuse if bounded else None,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except MemoryError:
        raise ValueError("takes more memory than there is") from None


def json_lines(content: bytes) -> list[bytes]:
    """Lines of JSON objects after a crash: a torn last one is none, one that lacks its newline alone counts."""
    *lines, rest = content.split(b"\n")
    # Of an object no beginning is JSON.
    return [*lines, rest] if rest.lstrip().startswith(b"{") and _is_json(rest) else lines


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def require_records(text: str) -> None:
    """Makes sure that a text of any length is of records, and not of brackets, which take much more memory than it.

    Raises:
        ValueError: if not.
    """
    if len(text) > _SMALL and (text.count("[") + text.count("{")) * _LEAST_RECORD > len(text):
        bare = _IN_STRINGS.sub("", text)
        if (bare.count("[") + bare.count("{")) * _LEAST_RECORD > len(text):
            raise ValueError("it is mostly brackets")


def _require_few(text: str) -> None:
    containers = text.count("[") + text.count("{")
    values = containers + text.count(",")
    if containers > MOST_CONTAINERS or values > MOST_VALUES:
        # Brackets and commas in a text are no values; looked at only where there are so many.
        bare = _IN_STRINGS.sub("", text)
        containers = bare.count("[") + bare.count("{")
        values = containers + bare.count(",")
    if containers > MOST_CONTAINERS or values > MOST_VALUES:
        raise ValueError(f"{values} values are too many")


def _whole(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) > LARGEST_NUMBER:
        raise ValueError(f"the number {text[:20]}... is beyond 64 bits")
    return value


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is beyond 64 bits")
    return value


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _is_hollow(handle: int, state: os.stat_result) -> bool:
    if state.st_size <= _SMALL or state.st_blocks * 512 * _SPARSE >= state.st_size:
        return False
    # Blocks may not have been given out yet to a file just written; holes are what the system itself calls so.
    filled = at = 0
    for _ in range(_MOST_EXTENTS):
        try:
            begin = os.lseek(handle, at, os.SEEK_DATA)
            at = os.lseek(handle, begin, os.SEEK_HOLE)
        except OSError:
            break
        filled += at - begin
    os.lseek(handle, 0, os.SEEK_SET)
    return filled * _SPARSE < state.st_size

"""The one place that removes anything, and only what this program can show that it made.

Nobody's file may be lost because a path was mistyped, moved or linked, so no other module deletes
(``tests/memory/test_removals.py`` looks for it). What may go:

    a folder being made     carries a marker from its first moment on, and is called ``.<name>.<random>.partial``
    a folder that is whole  its marker lists what belongs to it; a file that is not on the list stays
    a file being written    is called ``.<name>.<random>.seekr``
    a file that is whole    the caller says what must be true of it, or wrote it itself

Links are removed as links, never followed. What is unknown stays, and so does the folder it lies in.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MARKER = ".seekr-made.json"
FORMAT = "seekr-made"
UNFINISHED_FILE = ".seekr"
UNFINISHED_FOLDER = ".partial"
_HASHED = 1 << 20
"""Bytes of a file up to which the list has its hash too: a file of weights that long is known by its size."""
_LARGEST_MARKER = 1 << 24
_FILE = re.compile(rf"\.(.+)\.[a-z0-9_]{{8}}{re.escape(UNFINISHED_FILE)}")


def unfinished_folder(place: Path) -> Path:
    """A new name beside ``place`` for a folder that is to become it."""
    return place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}{UNFINISHED_FOLDER}"


def unfinished_of(name: str) -> str | None:
    """The name of the file that a temporary file was to become; ``None`` if it is none."""
    found = _FILE.fullmatch(name)
    return found[1] if found else None


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder, and those above it, and marks it as made here.

    Args:
        folder: must not exist.
        mode: its permissions, before the umask.

    Raises:
        OSError: if it cannot be made or marked.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=mode)
    try:
        _mark(folder, None)
    except OSError:
        with suppress(OSError):
            _remove_file(folder / MARKER)
        with suppress(OSError):
            folder.rmdir()
        raise


def list_content(folder: Path) -> None:
    """Notes in a marked folder all files that are in it now: from here on these and no others belong to it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path != folder / MARKER:
            files[str(path.relative_to(folder))] = [path.stat().st_size, _hash(path)]
    _mark(folder, files)


def relist(folder: Path, name: str) -> None:
    """Notes a file that is listed as this program's once more, after this program has written it anew.

    A folder that carries no list, or a file that is not on it, is nothing that this program may take.
    """
    marker = _read_marker(folder)
    path = folder / name
    if marker is not None and marker["files"] is not None and name in marker["files"] and is_regular(path):
        _mark(folder, marker["files"] | {name: [path.stat().st_size, _hash(path)]})


def give_away(folder: Path) -> None:
    """Takes the marker off: the folder is complete, belongs to whoever named it, and is not removed any more."""
    if _read_marker(folder) is not None:
        with suppress(OSError):
            _remove_file(folder / MARKER)


def is_made(folder: Path) -> bool:
    """Whether a folder carries this program's marker."""
    return _read_marker(folder) is not None


def remove_made(folder: Path) -> bool:
    """Removes a folder that carries the marker: all of it, or what the marker lists.

    Returns:
        Whether nothing is left at that path. ``False`` if it is not marked, something in it is not on the list, or the
        system does not let it go.
    """
    marker = _read_marker(folder)
    if marker is None:
        # Killed between making the folder and marking it.
        return _remove_empty(folder)
    if marker["files"] is None:
        shutil.rmtree(folder, ignore_errors=True)
        return not _exists(folder)
    for name, (size, digest) in marker["files"].items():
        path = folder / name
        with suppress(OSError):
            known = path.is_file() and not path.is_symlink() and path.stat().st_size == size
            if known and _inside(folder, path) and _hash(path) == digest:
                _remove_file(path)
    _remove_empty_above(folder, marker["files"])
    with suppress(OSError):
        _remove_file(folder / MARKER)
    return _remove_empty(folder)


def remove_known(folder: Path, names: Iterable[str]) -> bool:
    """Removes files of a folder by names that its own manifest or format gives them, then the folder if it is empty.

    Args:
        folder: whose format is known; not a link.
        names: plain file names, in the order in which they go.

    Returns:
        Whether nothing is left at that path.
    """
    if folder.is_symlink():
        return False
    for name in names:
        path = folder / name
        if path.parent == folder and path.is_file() and not path.is_symlink():
            with suppress(OSError):
                _remove_file(path)
    return _remove_empty(folder)


def remove_file(path: Path, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Removes one file, if it is there.

    Args:
        path: a file.
        is_ours: what must be true of it; ``None`` for a file that this very process has written or holds.

    Raises:
        OSError: if the system does not let it go.
    """
    if is_ours is None or (_exists(path) and is_ours(path)):
        with suppress(FileNotFoundError):
            _remove_file(path)


def is_regular(path: Path) -> bool:
    """Whether it is a file and no link: for names that only this program gives, in a folder that is known to be its."""
    return path.is_file() and not path.is_symlink()


def remove_empty(folder: Path) -> bool:
    """Removes a folder that holds nothing; returns whether nothing is left there."""
    return _remove_empty(folder)


def remove_unfinished(place: Path) -> None:
    """Removes what killed processes left beside ``place`` of files and folders that were to become it.

    Whoever calls holds ``place``, so that no living process is still at it.
    """
    for path in _entries(place.parent):
        kind = path.name.removeprefix(f".{place.name}.")
        if kind == path.name:
            continue
        if re.fullmatch(rf"[0-9a-f]{{8}}{re.escape(UNFINISHED_FOLDER)}", kind) and path.is_dir():
            remove_made(path)
        elif unfinished_of(path.name) == place.name:
            _remove_temporary(path)


def remove_unfinished_inside(folder: Path) -> None:
    """Removes the temporary files that a killed process left in a folder that this one holds."""
    for path in _entries(folder):
        if unfinished_of(path.name) is not None:
            _remove_temporary(path)


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """A marked folder for the length of a ``with`` block."""
    make_folder(folder, 0o700)
    try:
        yield folder
    finally:
        remove_made(folder)


def _mark(folder: Path, files: dict[str, Any] | None) -> None:
    content = json.dumps({"format": FORMAT, "id": uuid.uuid4().hex, "files": files}).encode()
    # Beside and renamed: a marker that was cut off would disown the folder.
    temporary = folder / f"{MARKER}{UNFINISHED_FILE}"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / MARKER)


def _read_marker(folder: Path) -> dict[str, Any] | None:
    path = folder / MARKER
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        if folder.is_symlink() or path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_MARKER:
            return None
        content = json.loads(path.read_bytes())
        files = content["files"]
        if content["format"] == FORMAT and (files is None or all(len(one) == 2 for one in files.values())):
            return {"files": files}
    return None


def _hash(path: Path) -> str | None:
    if path.stat().st_size > _HASHED:
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _inside(folder: Path, path: Path) -> bool:
    """Whether no link and no ``..`` leads from the folder to elsewhere on the way to a path."""
    if not path.is_relative_to(folder):
        return False
    inner = path.relative_to(folder)
    return ".." not in inner.parts and path.parent.resolve() == (folder.resolve() / inner).parent


def _remove_empty_above(folder: Path, names: Iterable[str]) -> None:
    above = {parent for name in names for parent in Path(name).parents if parent != Path(".")}
    for inner in sorted(above, key=lambda one: -len(one.parts)):
        if _inside(folder, folder / inner):
            _remove_empty(folder / inner)


def _remove_empty(folder: Path) -> bool:
    with suppress(OSError):
        if not folder.is_symlink():
            # A half-written marker is all that a kill can have left in a folder that is not marked yet.
            for path in _entries(folder):
                if path.name == f"{MARKER}{UNFINISHED_FILE}":
                    _remove_temporary(path)
            folder.rmdir()
    return not _exists(folder)


def _remove_temporary(path: Path) -> None:
    with suppress(OSError):
        if path.is_file() and not path.is_symlink():
            _remove_file(path)


def _remove_file(path: Path) -> None:
    path.unlink()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _exists(path: Path) -> bool:
    return os.path.lexists(path)

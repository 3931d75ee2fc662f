"""One process at a time on a folder, by whatever path it is named.

A holder has the ``flock`` of a file beside the folder, which may not exist yet, and of the folder itself where there is
one: the first is found by the resolved path, the second by device and inode, so that neither a symbolic link nor a
second mount leads around it. The system lets go of both when the holder dies.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seekr_cl.distributed import collectives
from seekr_cl.errors import OutputError
from seekr_cl.system.files import file_above
from seekr_cl.system.removal import remove_empty, remove_file

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# A pipe or a link that somebody put there must neither block nor lead elsewhere.
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class _HeldError(Exception):
    """Somebody else has the lock; what the lock file says of it."""

    def __init__(self, text: bytes = b"") -> None:
        self.text = text


def lock_path(folder: Path) -> Path:
    """The folder's lock file: beside it, since a memory or an output must be empty before it begins."""
    real = Path(os.path.realpath(folder))
    return real.parent / f".{real.name}.lock"


@contextmanager
def hold(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder, which need not exist yet, for the length of a ``with`` block.

    The lock is the files' ``flock``, not their being there: after kill -9 the file is left over and held by nobody. Of
    several processes of one training the first holds it for all.

    Args:
        folder: what nobody else may change meanwhile.
        what: what it is, for messages: ``memory``, ``run``, ``output``.

    Raises:
        OutputError: if another process holds it, naming that one, or if it cannot be locked.
    """
    with ExitStack() as stack:
        collectives.on_main(lambda: stack.enter_context(_hold(folder, what)))
        yield


def remove_left_over(paths: Iterable[Path]) -> None:
    """Removes lock files that nobody holds; one that somebody holds stays.

    Args:
        paths: lock files, as ``lock_path`` names them.
    """
    for path in paths:
        with suppress(OSError, _HeldError):
            handle = _acquire(path, create=False)
            remove_file(path)
            _release(handle)


@contextmanager
def _hold(folder: Path, what: str) -> Iterator[None]:
    path = lock_path(folder)
    above = file_above(path)
    if above is not None:
        raise OutputError(f"{folder}: {above} is a file, not a folder; choose another folder")
    made = [parent for parent in path.parents if not parent.exists()]
    with ExitStack() as stack:
        try:
            # First in, last out: the folders made for the lock file go when it is gone.
            stack.callback(_remove_empty, made)
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = _take_file(stack, path, folder, what)
            _take_folder(stack, Path(os.path.realpath(folder)), whole)
        except _HeldError as held:
            holder = _holder(held.text)
            raise OutputError(f"{folder}: this {what} is in use by {holder}; wait for it or stop it") from None
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be locked ({error.strerror}: {path}); choose another folder or change its "
                "permissions"
            ) from error
        yield


def _take_file(stack: ExitStack, path: Path, folder: Path, what: str) -> bool:
    """Takes the lock file; ``False`` if there can be none and the folder's own lock has to do."""
    try:
        handle = _acquire(path, create=True)
    except OSError as error:
        # What frees space must run on a full disk; a memory is written within, so its parent may be anybody's.
        enough = error.errno in _FULL or (error.errno in _NOT_ALLOWED and what == "memory")
        if not enough or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise
        return False

    def leave() -> None:
        # Unlinked while it is held; whoever waits on this file finds that it is no longer the one at this path.
        with suppress(OSError):
            remove_file(path)
        with suppress(OSError):
            os.ftruncate(handle, 0)
        _release(handle)

    stack.callback(leave)
    # The text is for messages alone, which a full disk or another user's file may do without.
    with suppress(OSError):
        os.fchmod(handle, 0o644)
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_self()).encode(), 0)
    return True


def _take_folder(stack: ExitStack, folder: Path, have_file: bool) -> None:
    """Takes the lock of the folder itself, if it is there."""
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _SAFELY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            _flock(handle)
            same = _is_at(handle, folder)
        except _HeldError:
            os.close(handle)
            raise
        except OSError:
            os.close(handle)
            # File systems on a network lock files alone.
            if have_file:
                return
            raise
        if same:
            stack.callback(_release, handle)
            return
        os.close(handle)


def _acquire(path: Path, create: bool) -> int:
    """The lock file, opened and held.

    Raises:
        _HeldError: if another process has it.
        OSError: if it cannot be opened or locked.
    """
    while True:
        try:
            handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | _SAFELY, 0o644)
        except PermissionError as error:
            # Another user's file can still be locked, if it is one.
            try:
                handle = os.open(path, os.O_RDONLY | _SAFELY)
            except OSError:
                raise error from None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            _flock(handle)
            text = os.pread(handle, 4096, 0)
            if not _is_at(handle, path):
                os.close(handle)
                continue
            if _lives(text):
                raise _HeldError(text)
            return handle
        except _HeldError as held:
            text = held.text or os.pread(handle, 4096, 0)
            os.close(handle)
            raise _HeldError(text) from None
        except OSError:
            os.close(handle)
            raise


def _flock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _HeldError from None


def _release(handle: int) -> None:
    # A forked child has the same lock by a handle of its own, so closing this one is not enough.
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _self() -> dict[str, object]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "pid": os.getpid(),
        "host": _host(),
        "started": _started(os.getpid()),
        "command": command[:500],
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _lives(text: bytes) -> bool:
    """Whether the process that a lock file names is still this machine's: some file systems only pretend to lock."""
    found = _read(text)
    if found is None or found["host"] != _host() or type(found["pid"]) is not int or found["pid"] == os.getpid():
        return False
    return found["started"] is not None and found["started"] == _started(found["pid"])


def _host() -> str:
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process began, such that a later one of the same number differs; ``None`` if there is none to be seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The command in parentheses may hold anything; the state is the first field behind it, the start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    except (OSError, IndexError, ValueError):
        return None


def _read(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        return {key: found[key] for key in ("pid", "host", "started", "command", "since")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _holder(text: bytes) -> str:
    found = _read(text)
    if found is None:
        return "another process"
    # One line, whatever the command was made of.
    command = " ".join(str(found["command"]).split())
    return f"process {found['pid']} on {found['host']} ({command}) since {found['since']}"


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        remove_empty(folder)

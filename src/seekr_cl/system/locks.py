"""One process at a time on a folder: a lock file beside it, which the system lets go of when its holder dies."""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from seekr_cl import ranks
from seekr_cl.errors import OutputError
from seekr_cl.system.files import file_above
from seekr_cl.system.removal import remove_empty, remove_file


def lock_path(folder: Path) -> Path:
    """The folder's lock file: beside it, since a memory or an output must be empty before it begins."""
    folder = folder.absolute()
    return folder.parent / f".{folder.name}.lock"


@contextmanager
def hold(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder, which need not exist yet, for the length of a ``with`` block.

    The lock is the file's ``flock``, not its being there: after kill -9 the file is left over and held by nobody. Of
    several processes of one training the first holds it for all.

    Args:
        folder: what nobody else may change meanwhile.
        what: what it is, for messages: ``memory``, ``run``, ``output``.

    Raises:
        OutputError: if another process holds it, naming that one, or if no lock file can be made there.
    """
    with ExitStack() as stack:
        ranks.first(lambda: stack.enter_context(_hold(folder, what)))
        yield


@contextmanager
def _hold(folder: Path, what: str) -> Iterator[None]:
    path = lock_path(folder)
    above = file_above(path)
    if above is not None:
        raise OutputError(f"{folder}: {above} is a file, not a folder; choose another folder")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, folder, what)
    except OSError as error:
        _remove_empty(made)
        raise OutputError(
            f"{folder}: cannot be locked ({error.strerror}: {path}); choose another folder or change its permissions"
        ) from error
    try:
        yield
    finally:
        # Unlinked while it is held; whoever waits on this file finds that it is no longer the one at this path.
        with suppress(OSError):
            remove_file(path)
        os.close(handle)
        _remove_empty(made)


def _acquire(path: Path, folder: Path, what: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(handle, 4096, 0)
            os.close(handle)
            raise OutputError(f"{folder}: this {what} is in use by {_holder(text)}; wait for it or stop it") from None
        except OSError:
            os.close(handle)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(_self()).encode(), 0)
    return handle


def _self() -> dict[str, object]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command[:500], "since": started}


def _holder(text: bytes) -> str:
    try:
        found = json.loads(text)
        # One line, whatever the command was made of.
        command = " ".join(str(found["command"]).split())
        return f"process {found['pid']} on {found['host']} ({command}) since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        remove_empty(folder)

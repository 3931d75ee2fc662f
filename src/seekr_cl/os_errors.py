"""What the operating system refuses, in one line that names the path, the reason and what helps."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from seekr_cl.errors import OutputError, SeekrError

_LONGEST = 300
_ADVICE = {
    errno.ENOSPC: "free space and run this again",
    errno.EDQUOT: "free space and run this again",
    errno.EACCES: "change its permissions or name another path",
    errno.EPERM: "change its permissions or name another path",
    errno.EROFS: "name another path",
    errno.EIO: "the disk or its file system fails; look into the system's log",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file stands where a folder should be; name another path",
    errno.EISDIR: "a folder stands where a file should be; name another path",
    errno.EEXIST: "name another path",
    errno.ENAMETOOLONG: "name another path",
    errno.ELOOP: "its symbolic links lead in a circle; name another path",
    errno.EMFILE: "raise the limit of open files ('ulimit -n 1024')",
    errno.ENFILE: "the machine has no open files left; end other programs",
}


def describe(error: OSError) -> str:
    """Path, reason and what helps, in one line.

    Args:
        error: from the operating system, or from a library that uses its kind for what it could not read.
    """
    reason = error.strerror or str(error) or type(error).__name__
    line = f"{_named(error)}{reason.strip().splitlines()[0]}"
    advice = _ADVICE.get(error.errno or 0)
    return f"{line}; {advice}" if advice else line


def reason_of(error: BaseException) -> str:
    """The reason alone, for messages that name the path themselves."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(reason).strip().splitlines()[0]


@contextmanager
def named(kind: type[SeekrError] = OutputError) -> Iterator[None]:
    """Turns an error of the operating system that nobody expected into one of the library's; also a decorator.

    Args:
        kind: which.

    Raises:
        SeekrError: of that kind, with ``describe`` as its message.
    """
    try:
        yield
    except (BrokenPipeError, ConnectionError):
        # About a pipe or another process, not about a path.
        raise
    except OSError as error:
        raise kind(describe(error)) from error


def _named(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    # One line, whatever the path is made of.
    shown = " -> ".join(" ".join(name.split()) for name in names)
    if len(shown) > _LONGEST:
        shown = f"{shown[:80]}..."
    return f"{shown}: " if shown else ""

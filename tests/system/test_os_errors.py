"""What the operating system refuses, in one line."""

import errno
import os
from pathlib import Path

import pytest

from seekr_cl.errors import DataError, OutputError
from seekr_cl.os_errors import describe, named


def error(number: int, *names: object) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (error(errno.ENOSPC, "/a/b"), "/a/b: No space left on device; free space and run this again"),
        (error(errno.EIO), "Input/output error; the disk or its file system fails; look into the system's log"),
        (error(errno.EACCES, b"/a/b"), "/a/b: Permission denied; change its permissions or name another path"),
        (error(errno.EEXIST, "/a", None, "/b"), "/a -> /b: File exists; name another path"),
        (error(errno.EMFILE, "/a"), "/a: Too many open files; raise the limit of open files ('ulimit -n 1024')"),
        (error(errno.ENOENT, "/a\nb\tc"), "/a b c: No such file or directory; check the path"),
        (error(errno.EBADF, 7), "Bad file descriptor"),
        (OSError("cannot load\nthe thing"), "cannot load"),
        (OSError(), "OSError"),
    ],
)
def test_one_line(given: OSError, said: str) -> None:
    assert describe(given) == said


def test_a_path_without_end() -> None:
    said = describe(error(errno.ENAMETOOLONG, "x" * 5000))
    assert said.startswith("x" * 80 + "...: File name too long")
    assert len(said) < 200


def test_named(tmp_path: Path) -> None:
    @named(DataError)
    def read(path: Path) -> str:
        return path.read_text()

    with pytest.raises(DataError, match="missing: No such file") as caught:
        read(tmp_path / "missing")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "there").write_text("content")
    assert read(tmp_path / "there") == "content"


def test_what_is_about_no_path_stays_what_it_is() -> None:
    for kind in (BrokenPipeError, ConnectionResetError):
        with pytest.raises(kind), named():
            raise kind
    with pytest.raises(OutputError, match="outer"), named(DataError):
        raise OutputError("outer")

"""A folder has one holder, whatever it is called and whatever became of earlier ones."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from seekr_cl.errors import OutputError
from seekr_cl.system import locks
from seekr_cl.system.locks import hold, lock_path, remove_left_over

IN_USE = "this memory is in use by "


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """Another process that holds the folder."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with hold(folder, "memory"):
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def is_free(folder: Path) -> bool:
    try:
        with hold(folder, "memory"):
            return True
    except OutputError as error:
        if IN_USE not in str(error):
            raise
        return False


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there yet"])
def test_a_folder_is_held_by_all_its_names(tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    memory = place / "memory"
    if there:
        memory.mkdir()
    (tmp_path / "link").symlink_to(memory)
    (tmp_path / "further").symlink_to("link")
    (tmp_path / "above").symlink_to(place)
    monkeypatch.chdir(place)
    names = [
        memory, tmp_path / "link", tmp_path / "further", tmp_path / "above" / "memory", Path("memory"),
        Path("../place/./memory"),
    ]  # fmt: skip
    for name in names:
        with held_elsewhere(name):
            assert [is_free(other) for other in names] == [False] * len(names), name
    assert all(map(is_free, names))


def test_a_folder_is_held_under_a_second_mount(tmp_path: Path) -> None:
    memory, other = tmp_path / "memory", tmp_path / "mounted" / "elsewhere"
    memory.mkdir()
    other.mkdir(parents=True)
    made = subprocess.run(["mount", "--bind", memory, other], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        with held_elsewhere(memory):
            assert not is_free(other)
        with held_elsewhere(other):
            assert not is_free(memory)
        assert is_free(other)
        assert is_free(memory)
    finally:
        subprocess.run(["umount", "-l", other], check=True)


def test_a_lock_that_is_held_is_not_removed(tmp_path: Path) -> None:
    held, left = tmp_path / "held", tmp_path / "left"
    lock_path(left).write_text("{}")
    with held_elsewhere(held):
        remove_left_over([lock_path(held), lock_path(left), tmp_path / ".none.lock"])
        assert lock_path(held).exists()
        assert not lock_path(left).exists()
        assert not is_free(held)
    remove_left_over([lock_path(held)])
    assert not lock_path(held).exists()


def test_a_lock_file_is_broken_only_when_its_process_is_gone(tmp_path: Path) -> None:
    """Where the file system only pretends to lock, what the file says of its holder still counts."""
    memory = tmp_path / "memory"
    sleeping = subprocess.Popen(["sleep", "60"])
    said = {"pid": sleeping.pid, "host": locks._host(), "started": locks._started(sleeping.pid)}
    said |= {"command": "seekr learn", "since": "2026"}
    try:
        lock_path(memory).write_text(json.dumps(said))
        with pytest.raises(OutputError, match=f"in use by process {sleeping.pid} on "), hold(memory, "memory"):
            pass
        # Another process has got the number since, or another machine's process has it.
        for other in ({"started": "another start"}, {"host": "elsewhere"}):
            lock_path(memory).write_text(json.dumps(said | other))
            assert is_free(memory)
        lock_path(memory).write_text(json.dumps(said))
        sleeping.kill()
        # Dead, although nobody has asked for its exit code yet.
        os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)
        assert is_free(memory)
    finally:
        sleeping.kill()
        sleeping.wait()


def test_a_child_that_lives_on_holds_nothing(tmp_path: Path) -> None:
    """A data loader's worker is forked with the parent's open files."""
    (tmp_path / "memory").mkdir()
    with hold(tmp_path / "memory", "memory"):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        assert is_free(tmp_path / "memory")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def as_nobody(check: object) -> int:
    """The exit code of a child that does something as a user without rights: 0 where it is true."""
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(0 if check() else 1)  # type: ignore[operator]
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_lock_file_of_another_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    place = tmp_path / "shared"
    memory = place / "memory"
    memory.mkdir(parents=True)
    memory.chmod(0o777)
    for sticky in (0o1777, 0o777, 0o755):
        place.chmod(sticky)
        lock_path(memory).write_text("{}")
        assert as_nobody(lambda: is_free(memory)) == 0, oct(sticky)
        with held_elsewhere(memory):
            assert as_nobody(lambda: is_free(memory)) == 1, oct(sticky)
        lock_path(memory).unlink(missing_ok=True)
    # Nobody's own folder in one where only root may write.
    place.chmod(0o755)
    assert as_nobody(lambda: is_free(memory)) == 0
    with hold(memory, "memory"):
        assert as_nobody(lambda: is_free(memory)) == 1


@pytest.mark.parametrize("inodes", [3, 0], ids=["no file can be made", "nothing can be written"])
def test_a_full_disk_can_be_locked(tmp_path: Path, inodes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size=64k,nr_inodes={inodes}"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        (disk / "memory").mkdir()
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        with held_elsewhere(disk / "memory"):
            assert lock_path(disk / "memory").exists() == (inodes == 0)
            assert not is_free(disk / "memory")
        assert is_free(disk / "memory")
        if inodes:
            with pytest.raises(OutputError, match="cannot be locked"), hold(disk / "new", "memory"):
                pass
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_lock_file(tmp_path: Path, kind: str) -> None:
    path = lock_path(tmp_path / "memory")
    (tmp_path / "precious").write_text("text")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "precious")
    else:
        path.mkdir()
    with pytest.raises(OutputError, match="cannot be locked"), hold(tmp_path / "memory", "memory"):
        pass
    assert (tmp_path / "precious").read_text() == "text"

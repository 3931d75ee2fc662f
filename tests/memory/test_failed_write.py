"""A write that fails, wherever it fails, leaves the former generation, and the next attempt succeeds."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_memory import commit, make_task, read_all

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.system.files import write_bytes

# A commit writes texts, signals, importance, generation and manifest; each is fsynced, renamed, its folder fsynced.
WRITES = 5
# The first one begins with a manifest that names no generation.
FIRST = WRITES + 1


class Fails:
    """The function, but for its n-th call, which finds the disk full."""

    def __init__(self, function: Callable[..., Any], at: int) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*args, **kwargs)


def state(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    ("name", "at"),
    [(name, at) for name in ("replace", "fdopen", "chmod") for at in range(1, WRITES + 1)]
    + [("fsync", at) for at in range(1, 2 * WRITES)],
)
def test_a_full_disk_at_any_point(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    before = state(folder)
    memory = ReplayMemory.open(folder)
    broken = Fails(getattr(os, name), at)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, broken)
        with pytest.raises(OutputError, match=r"memory/.*: cannot be written \(No space left.*free space") as caught:
            commit(memory, make_task("third", 4))
    assert broken.calls == at
    assert "\n" not in str(caught.value)

    after = state(folder)
    assert {key: after[key] for key in before} == before
    assert not [key for key in after if "/." in f"/{key}"], "a temporary file was left behind"
    later = read_all(folder, verify=True)
    assert [task.name for task in later.tasks] == ["first", "second"]
    assert (later.generation, later.model_sha256) == (2, "m2")

    # The same object and a fresh one both go on from where they were.
    assert (memory.generation, len(memory.tasks), memory.model_sha256) == (2, 2, "m2")
    commit(memory, make_task("third", 4), model="m3")
    assert [task.name for task in ReplayMemory.open(folder).tasks] == ["first", "second", "third"]


def test_the_last_sync_comes_after_the_generation_exists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the manifest's rename there is no way back: what is on disk is the whole next generation."""
    memory = ReplayMemory.open(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Fails(os.fsync, 2 * WRITES))
        with pytest.raises(OutputError):
            commit(memory, make_task("third", 4))
    assert ReplayMemory.open(folder).generation == 3


@pytest.mark.parametrize("at", range(1, FIRST + 1))
def test_the_first_generation_failing_is_not_a_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    memory = ReplayMemory.open(tmp_path / "memory", create=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Fails(os.replace, at))
        with pytest.raises(OutputError):
            commit(memory, make_task("first"))
    with pytest.raises(MemoryFormatError, match=r"holds no manifest\.json|nothing has been committed"):
        ReplayMemory.open(tmp_path / "memory")
    assert memory.generation == 0
    # What is left is taken for the new memory it was to be, by the command as well as by the same object.
    again = ReplayMemory.open(tmp_path / "memory", create=True)
    assert (again.generation, again.tasks) == (0, [])
    commit(memory if at % 2 else again, make_task("first"))
    assert read_all(tmp_path / "memory", verify=True).generation == 1
    assert upkeep.opened(tmp_path / "memory").leftovers() == []


def test_an_interrupt_is_no_disguise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a commit leaves the former generation too."""
    memory = ReplayMemory.open(folder)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commit(memory, make_task("third", 4))
    assert ReplayMemory.open(folder).generation == 2
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "memory" / "x", b"content")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_the_old_content_survives_until_the_new_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    seen: list[bytes] = []

    def watched(source: str, target: Path) -> None:
        seen.extend([Path(source).read_bytes(), path.read_bytes()])
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", watched)
    write_bytes(path, b"new")
    assert seen == [b"new", b"old"]
    assert path.read_bytes() == b"new"

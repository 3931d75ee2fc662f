"""Whatever fails between the model's rename and the end: nothing is lost, and ``resume`` finishes what was begun."""

import builtins
import errno
import io
import mmap
import os
import resource
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed
from tinylm import assert_same, config_for, memory_tensors, reverse_task, weights

from seekr_cl.errors import ConfigError, OutputError, OutputWarning, SeekrError
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample, model_hash, tokenizer_hash
from seekr_cl.models.loading import load_model
from seekr_cl.training import learn, phases, task_progress
from seekr_cl.training.checkpoint import Checkpoints

# What Python code asks of the operating system here, where it asks.
CALLS: list[tuple[Any, str]] = [
    (os, "open"), (os, "fdopen"), (os, "fsync"), (os, "replace"), (os, "chmod"), (os, "unlink"), (os, "rmdir"),
    (os, "mkdir"), (os, "scandir"), (io, "open"), (builtins, "open"), (mmap, "mmap"),
]  # fmt: skip


def attempt(base: Path, folder: Path, resume: bool = True) -> Any:
    task, settings = reverse_task(), config_for("seekr", folder)
    return learn(base, task, folder / "memory", folder / "m1", settings, resume=resume)


class Faults:
    """The n-th call of ``CALLS`` after a fault point fails, or that and all after it."""

    def __init__(
        self,
        begin: str,
        number: int,
        for_good: bool = False,
        code: int = errno.EIO,
        calls: Sequence[tuple[Any, str]] = CALLS,
    ) -> None:
        self.calls = calls
        self.begin, self.number, self.for_good, self.code = begin, number, for_good, code
        self.count, self.armed = 0, False

    def point(self, name: str) -> None:
        self.armed |= name == self.begin

    def failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                self.count += 1
                if self.count == self.number or (self.for_good and self.count > self.number):
                    raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return call

    def __enter__(self) -> "Faults":
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(phases, "fault_point", self.point)
        for module, name in self.calls:
            self.patch.setattr(module, name, self.failing(getattr(module, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.armed = False
        self.patch.undo()


@pytest.fixture(scope="module")
def scored(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learning of which everything but the writing is behind it."""
    folder = tmp_path_factory.mktemp("scored")

    def killed(name: str) -> None:
        if name == "learn.scored":
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_progress, "fault_point", killed)
        with pytest.raises(Killed):
            attempt(base, folder, resume=False)
    return folder


@pytest.fixture(scope="module")
def whole(base: Path, scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "done"
    shutil.copytree(scored, folder)
    attempt(base, folder)
    return folder


@pytest.fixture(scope="module")
def number_of_calls(base: Path, scored: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("counted") / "done"
    shutil.copytree(scored, folder)
    with Faults("learn.model_saved", 0) as faults:
        attempt(base, folder)
    assert faults.count > 50
    return faults.count


def finished(base: Path, folder: Path, whole: Path) -> None:
    """Resumed, it is the learning that nothing disturbed."""
    attempt(base, folder)
    assert_same(weights(folder / "m1"), weights(whole / "m1"))
    assert_same(memory_tensors(folder / "memory"), memory_tensors(whole / "memory"))
    assert ReplayMemory.open(folder / "memory", verify=True).generation == 1
    assert not (folder / "m1.checkpoints").exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def disturbed(base: Path, folder: Path, scored: Path, faults: Faults) -> None:
    """The writing, with faults: what is left is a model with its memory, or without one that could be ahead of it."""
    shutil.copytree(scored, folder)
    with warnings.catch_warnings(), faults:
        warnings.simplefilter("ignore", OutputWarning)
        said = ""
        try:
            attempt(base, folder)
        except SeekrError as error:
            said = str(error)
    assert "\n" not in said
    assert faults.count >= faults.number
    # What another process may have left for good is looked at with a system that works again.
    generation = ReplayMemory.open(folder / "memory", create=True).generation
    assert generation in (0, 1)
    if generation:
        assert (folder / "m1" / "config.json").is_file(), "the memory went on, and its model is nowhere"


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("part", range(6))
def test_a_fault_between_the_model_and_the_end(
    base: Path, tmp_path: Path, scored: Path, whole: Path, number_of_calls: int, part: int, for_good: bool
) -> None:
    number = 1 + part * (number_of_calls - 1) // 5
    disturbed(base, tmp_path / "x", scored, Faults("learn.model_saved", number, for_good, errno.ENOSPC))
    finished(base, tmp_path / "x", whole)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_every_fault_between_the_model_and_the_end(
    base: Path, tmp_path: Path, scored: Path, whole: Path, number_of_calls: int, for_good: bool
) -> None:
    # The two parameters try different ones; benchmarks/syscall_faults.py tries them all.
    for number in range(1 + for_good, number_of_calls + 1, 4):
        disturbed(base, tmp_path / str(number), scored, Faults("learn.model_saved", number, for_good))
        finished(base, tmp_path / str(number), whole)
        shutil.rmtree(tmp_path / str(number))


def test_no_file_can_be_opened_after_the_commit(
    base: Path, tmp_path: Path, scored: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a process runs out of open files there: the memory cannot even be asked what it is."""
    mark = task_progress.Lineage.mark
    # Removing still works, as in a process that has closed some of its files again.
    faults = Faults("committed", 1, True, errno.EMFILE, [(io, "open"), (builtins, "open"), (mmap, "mmap")])

    def marked(self: Any, records: Any, current: Any) -> None:
        mark(self, records, current)
        if current is not None:
            faults.point("committed")

    monkeypatch.setattr(task_progress.Lineage, "mark", marked)
    disturbed(base, tmp_path / "x", scored, faults)
    assert ReplayMemory.open(tmp_path / "x" / "memory").generation == 1
    finished(base, tmp_path / "x", whole)


def test_an_interrupt_after_the_commit(base: Path, tmp_path: Path, scored: Path, whole: Path) -> None:
    """A second Ctrl-C, which does not wait for anything."""
    shutil.copytree(scored, tmp_path / "x")
    tasks = ReplayMemory.commit

    def interrupted(self: ReplayMemory, *args: Any, **kwargs: Any) -> None:
        tasks(self, *args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplayMemory, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attempt(base, tmp_path / "x")
    assert (tmp_path / "x" / "m1" / "config.json").is_file()
    finished(base, tmp_path / "x", whole)


def test_a_model_that_is_gone_is_made_anew_from_its_checkpoint(
    base: Path, tmp_path: Path, scored: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What former releases left: the memory went on, and its model was removed."""
    shutil.copytree(scored, tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "clear", lambda self: None)
        attempt(base, tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "m1")
    finished(base, tmp_path / "x", whole)


def test_checkpoints_that_cannot_be_removed_are_a_warning(
    base: Path, tmp_path: Path, scored: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scored, tmp_path / "x")

    def refused(self: Checkpoints) -> None:
        raise OutputError(f"{self.place}: the checkpoints cannot be removed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "clear", refused)
        with pytest.warns(OutputWarning, match="cannot be removed; model and memory are written"):
            attempt(base, tmp_path / "x")
    finished(base, tmp_path / "x", whole)


@pytest.fixture
def crowded(base: Path, tmp_path: Path) -> Path:
    """A memory of more tasks than files may be open."""
    model, tokenizer = load_model(base)
    tasks = []
    for number in range(100):
        ids = torch.tensor(tokenizer(f"{number}=a")["input_ids"])
        tasks.append(MemoryTask(f"t{number}", [ReplaySample(f"{number}=", "a", ids, len(ids) - 1)]))
    ReplayMemory.open(tmp_path / "memory", create=True).commit(
        tasks, importance=None, model_sha256=model_hash(model), tokenizer_sha256=tokenizer_hash(tokenizer), method={}
    )
    return tmp_path


def test_a_memory_of_more_tasks_than_files_may_be_open(base: Path, crowded: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = config_for("replay", crowded, replay={"samples": 1, "every": 1})
    given = (base, reverse_task(), crowded / "memory", crowded / "m1", settings)
    open_now = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, hard))
        with pytest.raises(ConfigError, match=r"open files: this process may open .*ulimit -n"):
            learn(*given)
        assert sorted(path.name for path in crowded.iterdir()) == ["memory"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 90, hard))
        learn(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(ReplayMemory.open(crowded / "memory").tasks) == 101

"""A memory of any number of tasks takes few open files, and reads what it would read with all of them open."""

import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_memory import commit, make_task

from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.open_files import POOL, require_open_files, tasks_open

TASKS = 24


def open_now() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    made = ReplayMemory.open(tmp_path / "memory", create=True)
    commit(made, *(make_task(f"task-{number}", 2 * number, 1) for number in range(TASKS)))
    return tmp_path / "memory"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(POOL, "limit", 3)
    return 3


@pytest.fixture
def soft_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def allow(more: int) -> None:
    """So many files more than are open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now() + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_open_files_do_not_grow_with_the_tasks(memory: Path, few: int) -> None:
    before = open_now()
    one, other = ReplayMemory.open(memory, verify=True), ReplayMemory.open(memory)
    expected = [(task.name, sample.prompt, sample.ids_L.tolist()) for task, sample in one.samples]
    assert len(expected) == TASKS
    order = random.Random(0).choices(range(TASKS), k=3 * TASKS)
    read = [other.samples[index] for index in order]
    assert [(task.name, sample.prompt, sample.ids_L.tolist()) for task, sample in read] == [expected[i] for i in order]
    assert open_now() <= before + 2 * few


def test_more_tasks_than_files_may_be_open(memory: Path, soft_limit: None) -> None:
    """Committing, opening twice, verifying and reading with the real limit of the process."""
    made = ReplayMemory.open(memory)
    allow(TASKS)
    commit(made, make_task("another", 500, 1))
    one, other = ReplayMemory.open(memory, verify=True), ReplayMemory.open(memory)
    texts = [[sample.prompt for _, sample in memory.samples] for memory in (one, other)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == TASKS + 1


def test_files_that_were_exchanged_meanwhile_are_refused(memory: Path, few: int) -> None:
    one = ReplayMemory.open(memory)
    first, second = (one.tasks[number].samples for number in (0, 1))
    path = memory / "0001-task-0.safetensors"
    for number in range(few, 2 * few + 1):  # so that the first task's files are closed
        one.tasks[number].samples[0]
    (memory / "copy").write_bytes(path.read_bytes())
    (memory / "copy").replace(path)
    with pytest.raises(MemoryFormatError, match=r"0001-task-0\.safetensors: was changed while it was open"):
        first[0]
    (memory / "0002-task-1.jsonl").unlink()
    with pytest.raises(MemoryFormatError, match=r"0002-task-1\.jsonl: No such file"):
        second[0]


def test_a_limit_that_is_too_low_is_one_line(soft_limit: None) -> None:
    require_open_files()
    allow(20)
    with pytest.raises(ConfigError, match=r"open files: this process may open \d+ .*ulimit -n") as caught:
        require_open_files()
    assert "\n" not in str(caught.value)


def test_fewer_tasks_stay_open_where_few_files_may_be(soft_limit: None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert tasks_open() == 32
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    assert tasks_open() == 64

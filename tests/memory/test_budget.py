"""Sizes as a person writes them, and what goes when a memory is full."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_memory import commit, make_task

from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.budget import parse_bytes, shrink, task_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7), ("7", 7), ("500MB", 500_000_000), ("2GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("1 kib", 1024),
        ("0.5 kB", 500), (" 3b ", 3), ("1TB", 10**12),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_bytes("memory.max_bytes", text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "2 GBit", "1,5GB", 0, "0GB", "0.0001kB", True])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match=r"memory.max_bytes: .*(is not a size|leaves no room)"):
        parse_bytes("memory.max_bytes", text)


def total(sizes, kept):
    return sum(sizes[task][position] for task, positions in kept.items() for position in positions)


def test_what_fits_stays():
    assert shrink([[5, 5], [5]], 15) == {0: [0, 1], 1: [0]}


def test_tasks_give_up_down_to_one_level():
    sizes = [[10] * 8, [10] * 3, [10] * 8]
    assert {task: len(positions) for task, positions in shrink(sizes, 120).items()} == {0: 5, 1: 3, 2: 4}
    assert {task: len(positions) for task, positions in shrink(sizes, 90).items()} == {0: 3, 1: 3, 2: 3}
    assert shrink(sizes, 39) == {0: [0], 1: [0], 2: [0]}


def test_the_last_chosen_go_first():
    sizes = [[10, 10, 10], [10, 10, 10]]
    assert shrink(sizes, 40) == {0: [0, 1], 1: [0, 1]}
    assert shrink(sizes, 40, [[2, 0, 1], None]) == {0: [0, 2], 1: [0, 1]}


def test_the_smallest_possible_is_named():
    with pytest.raises(ConfigError, match=r"2 tasks takes 30 bytes, more than 29; allow at least 30"):
        shrink([[10, 99], [], [20, 99]], 29)
    assert shrink([[10, 99], [], [20, 99]], 30) == {0: [0], 1: [], 2: [0]}
    assert shrink([], 1) == {}


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 50), max_size=12), max_size=6), st.integers(1, 900))
def test_shrinking_in_general(sizes, limit):
    least = sum(task[0] for task in sizes if task)
    if least > limit:
        with pytest.raises(ConfigError, match=f"at least {least}"):
            shrink(sizes, limit)
        return
    kept = shrink(sizes, limit)
    assert kept == shrink(sizes, limit)
    assert total(sizes, kept) <= limit
    assert all(kept[number] for number, task in enumerate(sizes) if task)
    short = [len(kept[number]) for number, task in enumerate(sizes) if len(kept[number]) < len(task)]
    # Nobody who had to give something up has two fewer than anybody else.
    assert not short or max(map(len, kept.values())) - min(short) <= 1
    # And nothing more would have fitted: a smaller budget by one sample of everybody would not be needed.
    again = {number: [task[position] for position in kept[number]] for number, task in enumerate(sizes)}
    assert shrink(list(again.values()), limit) == {number: list(range(len(task))) for number, task in again.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_samples_size_is_what_its_files_grow_by(tmp_path, dtype):
    def taken(count):
        memory = ReplayMemory.open(tmp_path / str(count), create=True)
        commit(memory, make_task("t", count=count, dtype=dtype))
        return sum(file["bytes"] for file in memory._current.tasks[0]["files"])

    added = sum(task_bytes(make_task("t", count=12, dtype=dtype).samples)[1][2:])
    grown = taken(12) - taken(2)
    # The header holds numbers that may get a digit more.
    assert added <= grown <= added + 10


def test_a_memory_drops_samples_of_old_tasks(tmp_path):
    memory = ReplayMemory.open(tmp_path, create=True)
    commit(memory, make_task("a", count=4))
    commit(memory, make_task("b", first=9, count=3), keep={0: [0, 2]})
    for opened in (memory, ReplayMemory.open(tmp_path)):
        assert [sample.prompt for sample in opened.tasks[0].samples] == ["prompt 0 ∑", "prompt 2 ∑"]
        assert [task.name for task in opened.tasks] == ["a", "b"]
        assert len(opened.tasks[1].samples) == 3
    assert opened.num_bytes == memory.num_bytes

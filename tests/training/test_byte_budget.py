"""A byte budget while tasks are learned: the memory stays below it, tasks stay balanced, training is never lost."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from tinylm import config_for, constant_task, memory_tensors, reverse_task, teach

from seekr_cl.config.rates import NoEffectWarning
from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.budget import task_bytes
from seekr_cl.training.trainer import SeekrTrainer


def three_tasks() -> list[Any]:
    return [reverse_task(), constant_task("no", "no"), constant_task("yes", "yes")]


def sizes(memory: ReplayMemory) -> list[list[int]]:
    return [task_bytes(task.samples)[1] for task in memory.tasks]


@pytest.mark.parametrize("method", ["replay", "derpp", "seekr"])
@pytest.mark.parametrize("choice", ["random", "first", "herding"])
def test_a_full_memory_shrinks(base: Path, tmp_path: Path, method: str, choice: str) -> None:
    free = config_for(method, tmp_path, replay={"samples": 6, "choice": choice})
    teach(base, tmp_path / "free", three_tasks(), free)
    whole = sizes(ReplayMemory.open(tmp_path / "free/memory"))
    limit = sum(map(sum, whole)) * 2 // 3
    tight = config_for(method, tmp_path, replay={"samples": 6, "choice": choice}, memory={"max_bytes": limit})
    for name in ("tight", "again"):
        teach(base, tmp_path / name, three_tasks(), tight)
    memory = ReplayMemory.open(tmp_path / "tight/memory")
    counts = [len(task.samples) for task in memory.tasks]
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 1
    assert max(counts) < 6
    files = sum(file["bytes"] for record in memory._current.tasks for file in record["files"])
    # What another sample takes, and the digits of positions, which are counted at their longest.
    assert files <= limit < files + 2 * max(max(task) for task in whole) + 100 * sum(counts)
    left, right = memory_tensors(memory), memory_tensors(tmp_path / "again/memory")
    assert all(left[key].equal(right[key]) for key in left)
    # Of the first task, those stay that were chosen first; of a random choice any.
    first = [sample.prompt for sample in ReplayMemory.open(tmp_path / "free/memory").tasks[0].samples]
    stayed = [sample.prompt for sample in memory.tasks[0].samples]
    assert set(stayed) < set(first)
    assert choice == "random" or stayed == first[: len(stayed)]


def test_a_budget_below_one_sample_a_task_costs_no_training(base: Path, tmp_path: Path) -> None:
    tasks = [reverse_task("first", seed=1, length=4), reverse_task("second", seed=2, length=4)]
    free = config_for("seekr", tmp_path, replay={"samples": 3})
    teach(base, tmp_path / "free", tasks[:1], free)
    ((header, each),) = [task_bytes(task.samples) for task in ReplayMemory.open(tmp_path / "free/memory").tasks]
    # Not quite enough for one sample of each of two tasks.
    limit = 2 * (header + min(each)) - 10
    config = config_for("seekr", tmp_path, replay={"samples": 3}, memory={"max_bytes": limit})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        teach(base, tmp_path, tasks, config)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, NoEffectWarning)]
    before, after = "is about too small for one sample of each of 2 tasks", "one sample of each of 2 tasks takes"
    assert [word for line in said for word in (before, after) if word in line] == [before, after]
    assert [len(task.samples) for task in ReplayMemory.open(tmp_path / "memory").tasks] == [1, 1]
    assert (tmp_path / "m2/model.safetensors").exists()


def test_a_hopeless_budget_is_refused_before_training(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(SeekrTrainer, "train", lambda *_: pytest.fail("it was trained"))
    config = config_for("seekr", tmp_path, replay={"samples": 3}, memory={"max_bytes": 100})
    with pytest.raises(ConfigError, match=r"memory\.max_bytes: one sample of each of 1 tasks takes at least \d+ bytes"):
        teach(base, tmp_path, three_tasks()[:1], config)
    assert not (tmp_path / "m1").exists()

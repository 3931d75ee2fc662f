"""Replay over several old tasks: the paper's sum (eq. 2, 3, 12) against the batch's mean, by a step's gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import RATE, Twin, assert_near, plain_steps, token_loss, words_of
from tinylm import reverse_task, teach, weights
from torch import Tensor

from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample, TaskSamples
from seekr_cl.methods import Context, Layout
from seekr_cl.training.sample_selection import replay_weights


def task_of(name: str, count: int) -> MemoryTask:
    ids = torch.tensor([5, 6, 7])
    return MemoryTask(name, [ReplaySample(f"{n}=", "a", ids, 2) for n in range(count)])


TASKS = [reverse_task(f"task{number}", 4, length=3) for number in range(3)]
JOINT = {"ratio": 1.0, "every": 1, "step": "joint", "batch_size": 8}


@pytest.mark.parametrize(("over", "factor"), [("mean", 0.5), ("sum", 1.0)])
def test_the_third_tasks_step_adds_up_old_tasks_as_asked(base: Path, tmp_path: Path, over: str, factor: float) -> None:
    config = plain_steps("replay", tmp_path, replay=JOINT | {"over_tasks": over})
    teach(base, tmp_path, TASKS, config)
    old, twin = ReplayMemory.open(tmp_path / "memory").tasks[:2], Twin(tmp_path / "m2")

    def loss(model: Twin) -> Tensor:
        replayed = sum(token_loss(model.answers(words_of(task))) for task in old)
        return token_loss(model.answers(words_of(TASKS[2]))) + factor * replayed

    found = (twin.vector() - twin.flat(weights(tmp_path / "m3"))) / RATE
    assert_near(found, twin.gradient(loss))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_papers_preset_and_sapt_sum(tmp_path: Path) -> None:
    def over(method: str, **more: Any) -> str:
        return plain_steps(method, tmp_path, **more).replay.over_tasks

    assert over("derpp", preset="paper") == over("seekr", preset="paper") == over("sapt") == "sum"
    assert over("derpp") == over("seekr", preset="official") == "mean"
    assert over("derpp", preset="paper", replay={"over_tasks": "mean"}) == "mean"


def test_old_tasks_come_equally_often_whatever_was_kept_of_them(base: Path, tmp_path: Path) -> None:
    """The mean over draws is then the mean of the tasks' means, so that its multiple is their sum."""
    tasks = [task_of(name, count) for name, count in (("one", 9), ("two", 3))]
    replay = TaskSamples(tasks)

    def weigh(**settings: Any) -> list[float] | None:
        config = plain_steps("replay", tmp_path, replay={"ratio": 1.0} | settings)
        return replay_weights(config, replay, [], Context(None, Layout(0), None, 0, print))

    assert weigh(over_tasks="sum") == pytest.approx([1 / 9] * 9 + [1 / 3] * 3)
    assert weigh(over_tasks="mean") is None

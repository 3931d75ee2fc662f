"""Each method learns, and where it must it differs from plain fine-tuning."""

from pathlib import Path
from typing import Any

import pytest
from matrix import ROWS
from tinylm import config_for, constant_task, differs, reverse_task, teach, weights

from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import METHODS, get_method
from seekr_cl.methods.base import Paper
from seekr_cl.training import learn

SINGLE = [name for name, method in METHODS.items() if not method.multi_task]
LEARNING: dict[str, Any] = {"learning_rate": 0.01, "num_train_epochs": 6, "measure_every": 4}


def task_losses(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss_task"] for line in log if "loss_task" in line]


@pytest.mark.parametrize("method", SINGLE)
def test_two_trivial_tasks_are_learnt(base: Path, tmp_path: Path, method: str) -> None:
    tasks = [constant_task("yes", "yes"), constant_task("no", "no")]
    row = ROWS[method]
    config = config_for({"name": method, **row.settings}, tmp_path, **(LEARNING | row.training))
    for learnt in teach(base, tmp_path, tasks, config):
        losses = task_losses(learnt.log)
        assert losses[0] > row.begins
        assert min(losses[-3:]) < row.learns * losses[0]
        assert learnt.steps >= len(losses)


def test_multitask_learns_all_at_once(base: Path, tmp_path: Path) -> None:
    tasks = [constant_task("yes", "yes"), reverse_task(count=6)]
    tasks[1].epochs = 2
    config = config_for("multitask", tmp_path, **(LEARNING | {"num_train_epochs": 5}))
    learnt = learn(base, tasks, tmp_path / "memory", tmp_path / "m1", config)
    losses = task_losses(learnt.log)
    assert losses[-1] < 0.5 * losses[0]
    assert learnt.steps == 2 * -(-(12 + 6) // 4) + 3 * -(-12 // 4)  # two epochs of both, three more of the first
    kept = ReplayMemory.open(tmp_path / "memory").tasks
    assert [(task.name, task.samples) for task in kept] == [("yes+reverse", [])]


@pytest.mark.parametrize("method", [name for name in SINGLE if get_method(name).replays and not ROWS[name].first_task])
def test_replay_makes_a_difference_from_the_second_task_on(base: Path, tmp_path: Path, method: str) -> None:
    tasks = [constant_task("yes", "yes"), constant_task("no", "no")]
    plain = teach(base, tmp_path / "plain", tasks, config_for("seqft", tmp_path, **LEARNING))
    other = teach(base, tmp_path / "other", tasks, config_for(method, tmp_path, **LEARNING))
    assert not differs(weights(tmp_path / "plain/m1"), weights(tmp_path / "other/m1"))
    assert differs(weights(tmp_path / "plain/m2"), weights(tmp_path / "other/m2"))
    assert other[1].steps == 2 * plain[1].steps
    # Old samples are answered rightly at the end, which plain fine-tuning on the new answer cannot do.
    # iCaRL holds its exemplars to the earlier model's outputs alone.
    term = "loss_distil_old" if method == "icarl" else "loss_replay"
    replayed = [line[term] for line in other[1].log if term in line]
    assert replayed[-1] < max(replayed)


@pytest.mark.parametrize(("method", "logits", "attention"), [("replay", 0, 0), ("derpp", 1, 0), ("seekr", 1, 1)])
def test_each_method_keeps_what_it_needs(base: Path, tmp_path: Path, method: str, logits: int, attention: int) -> None:
    teach(base, tmp_path, [constant_task("yes", "yes")], config_for(method, tmp_path))
    memory = ReplayMemory.open(tmp_path / "memory")
    assert len(memory.samples) == 3
    for _, sample in memory.samples:
        assert (sample.logits is not None, sample.attention is not None) == (bool(logits), bool(attention))
        # The answer and its EOS are predicted by the positions before them.
        if sample.logits is not None:
            assert sample.logits.position_A.tolist() == [sample.completion_start - 1 + i for i in range(len("yes") + 1)]
        assert sample.completion == "yes"
    assert (memory.importance is not None) == bool(attention)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    method = get_method(name)
    assert method.name == name
    assert isinstance(method.paper, Paper)
    assert method.paper.url.startswith("https://")
    assert method.__doc__
    assert "L = " in method.__doc__

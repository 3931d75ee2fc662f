"""A run that was killed and resumed is the run that was never killed, bit for bit."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import Killed
from tinylm import assert_same, config_for, constant_task, memory_tensors, reverse_task, weights

from seekr_cl.errors import ConfigError, OutputError, SeekrError
from seekr_cl.evaluation import scoring
from seekr_cl.memory import ReplayMemory
from seekr_cl.runs import stream_run as run_module
from seekr_cl.runs.stream_run import run
from seekr_cl.training.checkpoint import Checkpoints

NAMES = ["01-reverse", "02-no"]


def tasks() -> list[Any]:
    return [reverse_task(), constant_task("no", "no")]


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    found = {f"{name}/{key}": value for name in NAMES for key, value in weights(folder / "models" / name).items()}
    scores = json.loads((folder / "scores.json").read_text("utf-8"))
    kept = {key: value for key, value in scores.items() if key != "seconds"}
    return found, memory_tensors(folder / "memory"), kept


def settings(folder: Path, method: str = "seekr", **more: Any) -> Any:
    return config_for(method, folder, **more)


def nth_call(function: Callable[..., Any], number: int, after: bool = False) -> Callable[..., Any]:
    """The function, killed at its n-th call, before or after it did its work."""
    calls = iter(range(1, 1000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        dies = next(calls) == number
        if dies and not after:
            raise Killed
        result = function(*args, **kwargs)
        if dies:
            raise Killed
        return result

    return wrapped


KILLS: dict[str, tuple[Any, str, int, bool]] = {
    "before the first task": (run_module, "learn", 1, False),
    "after task 1 is committed": (run_module, "learn", 1, True),
    "in the middle of task 2": (run_module, "learn", 2, False),
    "after task 2 is committed": (run_module, "learn", 2, True),
    "between model and memory of task 2": (ReplayMemory, "commit", 2, False),
    "in an evaluation": (scoring, "score_task", 4, False),
    "writing a memory file of task 2": (os, "replace", 14, False),
}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(base, tasks(), folder, settings(folder))
    return folder


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_resumed(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    place, name, number, after = KILLS[kill]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, nth_call(getattr(place, name), number, after))
        with pytest.raises(Killed):
            run(base, tasks(), tmp_path / "run", settings(tmp_path))
    with pytest.raises(OutputError, match="already holds a run; continue it with --resume"):
        run(base, tasks(), tmp_path / "run", settings(tmp_path))
    run(base, tasks(), tmp_path / "run", settings(tmp_path), resume=True)
    for one, other in zip(outcome(tmp_path / "run"), outcome(whole)):
        if "matrix" in one:
            assert one | {"memory_bytes": 0} == other | {"memory_bytes": 0}
        else:
            assert_same(one, other)
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("keep", ["all", "last"])
def test_a_model_that_is_gone_is_made_anew_from_its_checkpoint(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int, keep: str
) -> None:
    """The memory went on and the model that belongs to it is nowhere, as a failure between both once left it."""
    folder, given = tmp_path / "run", settings(tmp_path, keep_models=keep)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "clear", nth_call(Checkpoints.clear, 2 * number))
        with pytest.raises(Killed):
            run(base, tasks(), folder, given)
    assert ReplayMemory.open(folder / "memory").generation == number
    shutil.rmtree(folder / "models" / NAMES[number - 1])
    run(base, tasks(), folder, given, resume=True)
    kept = NAMES if keep == "all" else NAMES[1:]
    assert sorted(path.name for path in (folder / "models").iterdir()) == kept
    for name in kept:
        assert_same(weights(folder / "models" / name), weights(whole / "models" / name))
    assert_same(memory_tensors(folder / "memory"), memory_tensors(whole / "memory"))
    assert json.loads((folder / "scores.json").read_text())["matrix"] == outcome(whole)[2]["matrix"]


def test_a_model_that_somebody_removed_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "learn", nth_call(run_module.learn, 2))
        with pytest.raises(Killed):
            run(base, tasks(), folder, settings(tmp_path))
    shutil.rmtree(folder / "models" / NAMES[0])
    before = memory_tensors(folder / "memory")
    with pytest.raises(SeekrError, match=f"{NAMES[0]}: "):
        run(base, tasks(), folder, settings(tmp_path), resume=True)
    assert_same(memory_tensors(folder / "memory"), before)


def test_resuming_a_finished_run_trains_nothing(
    base: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcome(whole)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run_module, "learn", never)
    monkeypatch.setattr(scoring, "score_task", never)
    matrix = run(base, tasks(), whole, settings(tmp_path), resume=True)
    assert len(matrix.rows) == 2
    assert outcome(whole)[2] == before[2]


def test_the_official_leak_and_optimizer_survive_a_kill(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official: dict[str, Any] = {"preset": "official", "replay": {"ratio": 0.25}, "num_train_epochs": 2}
    run(base, tasks(), tmp_path / "whole", settings(tmp_path, **official))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "learn", nth_call(run_module.learn, 2))
        with pytest.raises(Killed):
            run(base, tasks(), tmp_path / "run", settings(tmp_path, **official))
    run(base, tasks(), tmp_path / "run", settings(tmp_path, **official), resume=True)
    assert_same(outcome(tmp_path / "run")[0], outcome(tmp_path / "whole")[0])


def test_only_the_same_run_can_be_resumed(base: Path, whole: Path, tmp_path: Path) -> None:
    others: list[tuple[str, Any, Any]] = [
        ("method", tasks(), settings(tmp_path, "derpp")),
        ("seed", tasks(), settings(tmp_path, seed=5)),
        ("tasks", [reverse_task(seed=3), constant_task("no", "no")], settings(tmp_path)),
        ("tasks", tasks()[::-1], settings(tmp_path)),
        ("training", tasks(), settings(tmp_path, learning_rate=0.5)),
    ]
    for key, other, config in others:
        with pytest.raises(ConfigError, match=f"the run there has another '{key}'"):
            run(base, other, whole, config, resume=True)


def test_only_the_last_model_is_kept_if_asked(base: Path, tmp_path: Path) -> None:
    run(base, tasks(), tmp_path / "run", settings(tmp_path, keep_models="last"))
    assert [path.name for path in (tmp_path / "run/models").iterdir()] == ["02-no"]
    assert (base / "model.safetensors").exists()

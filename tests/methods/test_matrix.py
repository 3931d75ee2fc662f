"""Every method against its row: it learns, differs from plain fine-tuning, goes on after a stop, has no dead option."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from matrix import ROWS, Change
from tinylm import config_for, constant_task, differs, memory_tensors, reverse_task, teach, weights
from transformers import TrainerCallback

from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.methods import METHODS, get_method
from seekr_cl.training import SeekrConfig, learn, phases

LEARNING: dict[str, Any] = {"learning_rate": 0.01, "num_train_epochs": 6, "measure_every": 4, "checkpoint_every": 0}
SHORT = LEARNING | {"num_train_epochs": 1}
SINGLE = [name for name, method in METHODS.items() if not method.multi_task]
CHANGES = [(name, key, change) for name, row in ROWS.items() for key, change in row.changes.items()]
ELSEWHERE = ("seekr", "derpp", "replay")
"""Methods whose settings ``tests/training/test_no_dead_options.py`` and ``test_config.py`` go through."""


def tasks() -> list[Any]:
    return [constant_task("yes", "yes"), reverse_task(count=8)]


def configured(name: str, folder: Path, common: dict[str, Any] = LEARNING, **settings: Any) -> SeekrConfig:
    row = ROWS[name]
    return config_for({"name": name, **row.settings, **settings}, folder, **(common | row.training))


def outcome(folder: Path) -> dict[str, Any]:
    """All that a stream of two tasks leaves."""
    memory = ReplayMemory.open(folder / "memory")
    state = memory.method_state
    found = memory_tensors(memory) | ({} if state is None else {f"state/{n}": t for n, t in state.tensors.items()})
    return {"weights": weights(folder / "m2"), "memory": found}


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == set(SINGLE)


@pytest.mark.parametrize("name", SINGLE)
def test_every_setting_has_a_change_and_a_wrong_value(name: str) -> None:
    keys = {field.name for field in dataclasses.fields(get_method(name).Settings)}
    if name not in ELSEWHERE:
        assert set(ROWS[name].changes) == keys
        booleans = {field.name for field in dataclasses.fields(get_method(name).Settings) if field.type is bool}
        assert set(ROWS[name].wrong) == keys - booleans


@pytest.fixture(scope="module")
def stream(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Streams of two tasks, each learned once: their folder and logs."""
    done: dict[str, tuple[Path, list[Any]]] = {}

    def get(name: str, common: dict[str, Any], **settings: Any) -> tuple[Path, list[Any]]:
        key = repr((name, sorted(common.items()), sorted(settings.items())))
        if key not in done:
            folder = tmp_path_factory.mktemp(name)
            done[key] = folder, teach(base, folder, tasks(), configured(name, folder, common, **settings))
        return done[key]

    return get


@pytest.fixture(scope="module")
def learnt(stream: Any) -> Any:
    """Streams of two tasks by method."""
    return lambda name: stream(name, LEARNING)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_learns(learnt: Any, name: str) -> None:
    first = [line["loss_task"] for line in learnt(name)[1][0].log if "loss_task" in line]
    assert first[0] > ROWS[name].begins
    assert min(first[-3:]) < ROWS[name].learns * first[0]


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "seqft"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_differs_from_plain_fine_tuning_where_it_must(stream: Any, learnt: Any, name: str) -> None:
    training = {key: value for key, value in ROWS[name].training.items() if key != "replay"}
    plain, folder = stream("seqft", LEARNING | training)[0], learnt(name)[0]
    assert differs(weights(plain / "m2"), weights(folder / "m2"))
    assert differs(weights(plain / "m1"), weights(folder / "m1")) == ROWS[name].first_task


class KilledError(Exception):
    """No error of the system, which would become the library's."""


class Stop(TrainerCallback):
    """An error in the middle of a task, right after a checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KilledError


@pytest.mark.parametrize("place", ["in a step", "before the model is written"])
@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_goes_on_where_it_stopped(
    learnt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    whole = learnt(name)[0]
    memory = tmp_path / "memory"
    upkeep_copy(whole / "memory", memory)
    config = configured(name, tmp_path, LEARNING | {"checkpoint_every": 2})
    given = (whole / "m1", tasks()[1], memory, tmp_path / "m2", config)
    with monkeypatch.context() as patch:
        if place != "in a step":
            patch.setattr(phases, "save_model", _interrupted)
        with pytest.raises(KilledError):
            learn(*given, [Stop()] if place == "in a step" else [])
    learn(*given, resume=True)
    one, other = outcome(tmp_path), outcome(whole)
    for shown in one:
        assert not differs(one[shown], other[shown]), shown
    assert upkeep.verify(memory)[1] == []


def upkeep_copy(source: Path, target: Path) -> None:
    """The memory as it was after the first task."""
    shutil.copytree(source, target)
    upkeep.rollback(target, "yes")
    upkeep.collect(target, 1)


def _interrupted(*args: Any, **more: Any) -> None:
    raise KilledError


@pytest.mark.parametrize(("name", "key", "change"), CHANGES, ids=[f"{name}.{key}" for name, key, _ in CHANGES])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_setting_is_dead(stream: Any, name: str, key: str, change: Change) -> None:
    seen = []
    for more in ({}, {key: change.to}):
        folder, done = stream(name, SHORT, **(change.on | more))
        lines = [{k: v for k, v in line.items() if k != "epoch"} for line in done[-1].log if "loss" in line]
        seen.append(outcome(folder) | {"log": lines})
    one, other = (found[change.shows] for found in seen)
    assert one != other if change.shows == "log" else differs(one, other), f"{key} changed nothing"


@pytest.mark.parametrize(
    ("name", "key", "value"), [(name, key, value) for name, row in ROWS.items() for key, value in row.wrong.items()]
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key}") as caught:
        config_for({"name": name, key: value}, tmp_path)
    assert "\n" not in str(caught.value)

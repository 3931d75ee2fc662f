"""What can go wrong while a task is learned is named, replaces nothing, and can be gone on from."""

import dataclasses
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed
from tinylm import assert_same, config_for, constant_task, memory_tensors, reverse_task, save_base, weights

from seekr_cl.errors import ConfigError, DataError, OutputError, SeekrError, TrainingError
from seekr_cl.evaluation import task_scoring as scoring
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.base import Method
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.runs.stream_run import run
from seekr_cl.system import stop_requests as stopping
from seekr_cl.system.locks import hold, lock_path
from seekr_cl.system.stop_requests import Stopped
from seekr_cl.tasks import Example, Task
from seekr_cl.training import learn
from seekr_cl.training.checkpoint import Checkpoints, CheckpointWarning


def config(folder: Path, **more: Any) -> Any:
    return config_for("seekr", folder, **({"checkpoint_every": 2, "num_train_epochs": 2} | more))


def attempt(base: Path, folder: Path, task: Task | None = None, resume: bool = True, **more: Any) -> Any:
    task = task or reverse_task()
    return learn(base, task, folder / "memory", folder / "m1", config(folder, **more), resume=resume)


def interrupted(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 4) -> None:
    """A learning that a signal stops after some steps."""
    with monkeypatch.context() as patch:
        ask_after(patch, step)
        with pytest.raises(Stopped) as caught:
            attempt(base, folder, resume=False)
    assert caught.value.code == 143
    assert not (folder / "m1").exists()
    assert not (folder / "memory").exists()


def ask_after(patch: pytest.MonkeyPatch, step: int) -> None:
    calls = iter(range(1, 10_000))
    terms = Method.new_task_loss

    def watched(self: Any, *args: Any) -> Any:
        if next(calls) == step:
            patch.setattr(stopping, "_requested", 15)
        return terms(self, *args)

    patch.setattr(Method, "new_task_loss", watched)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    attempt(base, folder)
    return folder


def same(folder: Path, whole: Path) -> None:
    assert_same(weights(folder / "m1"), weights(whole / "m1"))
    assert_same(memory_tensors(folder / "memory"), memory_tensors(whole / "memory"))
    assert not (folder / "m1.checkpoints").exists()


def test_an_interrupted_learning_is_not_begun_again_by_accident(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(base, tmp_path, monkeypatch)
    with pytest.raises(OutputError, match=r"m1\.checkpoints: holds an interrupted learning.*--resume"):
        attempt(base, tmp_path, resume=False)
    attempt(base, tmp_path)
    same(tmp_path, whole)
    assert attempt(base, tmp_path).steps > 0  # it is done, and being asked again changes nothing
    same(tmp_path, whole)


def test_what_a_machine_chose_is_taken_over_from_python(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``--resume`` does: a batch and a precision that are left open are those that it was begun with."""
    chosen = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "bf16": True}
    left_open = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "progress": "lines"}
    with monkeypatch.context() as patch:
        ask_after(patch, 4)
        with pytest.raises(Stopped):
            attempt(base, tmp_path, resume=False, **chosen)
    with pytest.raises(ConfigError, match="another per_device_train_batch_size"):
        attempt(base, tmp_path, **left_open | {"per_device_train_batch_size": 5})
    capsys.readouterr()
    learnt = attempt(base, tmp_path, **left_open)
    said = capsys.readouterr().err
    assert all(f"{key}={value}: what is resumed was begun with it" in said for key, value in chosen.items())
    attempt(base, tmp_path / "whole", resume=False, **chosen)
    same(tmp_path, tmp_path / "whole")
    assert learnt.training["from"]["optim"] == "library"

    task = reverse_task()
    with monkeypatch.context() as patch:
        ask_after(patch, 4)
        with pytest.raises(Stopped):
            run(str(base), [task], tmp_path / "run", config(tmp_path, **chosen))
    run(str(base), [task], tmp_path / "run", config(tmp_path, **left_open), resume=True)
    assert_same(weights(next((tmp_path / "run" / "models").iterdir())), weights(tmp_path / "whole" / "m1"))


def test_skipped_batches_are_not_computed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(base, tmp_path, monkeypatch)
    seen: list[int] = []
    fetch = ScheduledBatches.__getitem__
    monkeypatch.setattr(ScheduledBatches, "__getitem__", lambda self, i: (seen.append(i), fetch(self, i))[1])
    attempt(base, tmp_path)
    assert seen == list(range(4, 6))


def test_the_state_is_saved_as_often_as_asked(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    save = Checkpoints.save

    def watched(self: Checkpoints, state: Any, parts: Any, *rest: Any) -> None:
        if state["phase"] == "training":
            steps.append(int(parts["optimizer"]["lm_head.weight/step"]))
        save(self, state, parts, *rest)

    monkeypatch.setattr(Checkpoints, "save", watched)
    for every, expected in ((0, [6]), (2, [2, 4, 6]), (4, [4, 6])):
        steps.clear()
        attempt(base, tmp_path / str(every), checkpoint_every=every)
        assert steps == expected


def test_nothing_else_can_be_resumed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(base, tmp_path, monkeypatch)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    other_model = save_base(tmp_path.parent / f"{tmp_path.name}-other", seed=1)
    other_tokens = tmp_path.parent / f"{tmp_path.name}-tokens"
    shutil.copytree(base, other_tokens)
    text = (other_tokens / "tokenizer.json").read_text().replace('"a": 4', '"a": 5', 1).replace('"b": 5', '"b": 4', 1)
    (other_tokens / "tokenizer.json").write_text(text)
    task = reverse_task()
    changed = dataclasses.replace(task, train=[*task.train[:-1], Example("abc=", "cbb")])
    cases: list[tuple[dict[str, Any], type[SeekrError], str]] = [
        ({"base": base, "learning_rate": 0.5}, ConfigError, r"another learning_rate \(0.001, now 0.5\)"),
        ({"base": base, "seed": 3}, ConfigError, r"another seed \(42, now 3\)"),
        ({"base": base, "measure_every": 3}, ConfigError, "another measure_every"),
        ({"base": base, "replay": {"ratio": 0.5, "every": 1}}, ConfigError, r"another method.replay.ratio"),
        ({"base": base, "task": changed}, DataError, "task 'reverse': name, epochs or training data"),
        ({"base": other_model}, ConfigError, "another model;"),
        ({"base": other_tokens}, ConfigError, "another tokenizer;"),
    ]
    for given, kind, message in cases:
        with pytest.raises(kind, match=message):
            attempt(given.pop("base"), tmp_path, **given)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_damaged_checkpoint_costs_some_steps_and_nothing_else(
    base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(base, tmp_path, monkeypatch, step=5)
    newest = max((tmp_path / "m1.checkpoints").iterdir())
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    with pytest.warns(CheckpointWarning, match=r"optimizer\.safetensors"):
        attempt(base, tmp_path)
    same(tmp_path, whole)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_number_stops_before_anything_is_replaced(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    terms, calls = Method.new_task_loss, iter(range(1, 100))

    def broken(self: Any, *args: Any) -> Any:
        found = terms(self, *args)
        if next(calls) == 4:
            value = found["task"].value
            found["task"].value = value * float("nan") if where == "loss" else (value - value.detach()).sqrt()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Method, "new_task_loss", broken)
        with pytest.raises(TrainingError, match=rf"step 4: the {where}.* is nan; nothing was replaced"):
            attempt(base, tmp_path, resume=False)
    assert not (tmp_path / "m1").exists()
    assert not (tmp_path / "memory").exists()
    found = Checkpoints(tmp_path / "m1.checkpoints").newest()
    assert found is not None
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors("weights").values())


FULL = ["checkpoint", "first checkpoint", "model", "memory"]


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, what)
        with pytest.raises(OutputError, match=r"cannot be written .*(No space left|free space)"):
            attempt(base, tmp_path, resume=False)
    assert not (tmp_path / "m1").exists()
    assert not list(tmp_path.rglob("*.partial"))
    if what == "first checkpoint":
        attempt(base, tmp_path, resume=False)
    else:
        attempt(base, tmp_path)
    same(tmp_path, whole)


def fill_disk(patch: pytest.MonkeyPatch, what: str) -> None:
    """The disk is full for what is written to paths with a certain word in them."""
    replace, calls = os.replace, iter(range(1, 1000))

    def full(source: Any, target: Any) -> None:
        path = Path(target)
        hit = {
            "checkpoint": path.name == "000003",
            "first checkpoint": path.name == "000001",
            "model": path.name == "m1",
            "memory": path.parent.name == "memory" and next(calls) == 2,
        }[what]
        if hit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    patch.setattr(os, "replace", full)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with hold(tmp_path / "memory", "memory"):
            os.write(write, b"x")
            os.kill(os.getpid(), 19)  # stopped, holding it
        os._exit(0)
    os.read(read, 1)
    in_use = rf"memory: this memory is in use by process {child} on .* since 20"
    with pytest.raises(OutputError, match=in_use), hold(tmp_path / "memory", "memory"):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert lock_path(tmp_path / "memory").exists()
    with hold(tmp_path / "memory", "memory"):
        pass
    assert os.listdir(tmp_path) == []


def test_two_at_once(base: Path, tmp_path: Path, whole: Path) -> None:
    with hold(tmp_path / "memory", "memory"), pytest.raises(OutputError, match="this memory is in use by process"):
        attempt(base, tmp_path)
    with hold(tmp_path / "run", "run"), pytest.raises(OutputError, match="this run is in use by process"):
        run(base, [reverse_task()], tmp_path / "run", config(tmp_path))
    attempt(base, tmp_path)
    same(tmp_path, whole)


def test_a_read_only_memory(base: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole / "memory", tmp_path / "memory")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "memory" and allowed(path, mode))
    with pytest.raises(OutputError, match=r"memory: .*memory cannot be written to"):
        learn(whole / "m1", constant_task("no", "no"), tmp_path / "memory", tmp_path / "m2", config(tmp_path))
    assert not (tmp_path / "m2").exists()
    assert ReplayMemory.open(tmp_path / "memory").generation == 1


def test_an_evaluation_goes_on_at_the_task_it_had_reached(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    evaluate = scoring.score_task

    def watched(engine: Any, task: Task, *rest: Any) -> Any:
        if len(scored) == 3:
            scored.append("killed")
            raise Killed
        scored.append(task.name)
        return evaluate(engine, task, *rest)

    monkeypatch.setattr(scoring, "score_task", watched)
    tasks = [reverse_task(), constant_task("no", "no")]
    with pytest.raises(Killed):
        run(base, tasks, tmp_path / "run", config(tmp_path))
    run(base, tasks, tmp_path / "run", config(tmp_path), resume=True)
    assert scored == ["reverse", "no", "reverse", "killed", "no", "reverse", "no"]
    assert not list(tmp_path.rglob("partial.json"))


def test_a_run_whose_tests_or_model_changed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[run.__module__]
    model = tmp_path / "base"
    shutil.copytree(base, model)
    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(model, [reverse_task()], tmp_path / "run", config(tmp_path))
    task = reverse_task()
    for other in (dataclasses.replace(task, test=task.test[1:]), dataclasses.replace(task, max_new_tokens=3)):
        with pytest.raises(ConfigError, match="the run there has another 'tasks'"):
            run(model, [other], tmp_path / "run", config(tmp_path), resume=True)
    shutil.rmtree(model)
    save_base(model, seed=1)
    with pytest.raises(ConfigError, match=r"run\.json: the model has changed since the run was begun"):
        run(model, [task], tmp_path / "run", config(tmp_path), resume=True)


def test_a_reporter_that_is_not_installed_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="report_to: wandb"):
        attempt(base, tmp_path, resume=False, report_to="wandb")
    assert not (tmp_path / "m1").exists()

"""Learning task after task: what connects two calls, what is drawn from the seed, what is warned of."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import (
    assert_same,
    config_for,
    constant_task,
    differs,
    memory_tensors,
    reverse_task,
    save_base,
    teach,
    weights,
)

from seekr_cl.config.rates import NoEffectWarning
from seekr_cl.errors import ConfigError, MemoryFormatError, ModelError, OutputError, SeekrError
from seekr_cl.memory import ReplayMemory
from seekr_cl.runs.stream_run import run
from seekr_cl.training import learn

METHODS = ["replay", "derpp", "seekr"]


def two_tasks() -> list[Any]:
    return [reverse_task(), constant_task("no", "no")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extra", [{}, {"preset": "official", "num_train_epochs": 2}], ids=["default", "official"])
def test_two_calls_are_one_run(base: Path, tmp_path: Path, method: str, extra: dict[str, Any]) -> None:
    if extra:
        extra = {**extra, "replay": {"ratio": 0.25}}
    teach(base, tmp_path / "days", two_tasks(), config_for(method, tmp_path, **extra))
    run(base, two_tasks(), tmp_path / "run", config_for(method, tmp_path, **extra))
    for number, name in enumerate(["reverse", "no"], start=1):
        assert_same(
            weights(tmp_path / "days" / f"m{number}"), weights(tmp_path / "run/models" / f"{number:02d}-{name}")
        )
    assert_same(memory_tensors(tmp_path / "days/memory"), memory_tensors(tmp_path / "run/memory"))
    assert differs(weights(tmp_path / "days/m1"), weights(tmp_path / "days/m2"))


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_everything(base: Path, tmp_path: Path, method: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name) % 1000)  # what the process drew before must not matter
        teach(base, tmp_path / name, two_tasks(), config_for(method, tmp_path, seed=seed))
    assert_same(weights(tmp_path / "a/m2"), weights(tmp_path / "b/m2"))
    assert_same(memory_tensors(tmp_path / "a/memory"), memory_tensors(tmp_path / "b/memory"))
    assert differs(weights(tmp_path / "a/m2"), weights(tmp_path / "c/m2"))
    assert differs(memory_tensors(tmp_path / "a/memory"), memory_tensors(tmp_path / "c/memory"))


@pytest.mark.parametrize("method", METHODS)
def test_general_data_is_task_zero(base: Path, tmp_path: Path, method: str) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text("".join(f'{{"prompt": "say {c}:", "completion": "{c}{c}"}}\n' for c in "abcdefghijklmnop"))
    settings = config_for(method, tmp_path, general=str(general), general_samples=5)
    teach(base, tmp_path / "with", two_tasks(), settings)
    memory = ReplayMemory.open(tmp_path / "with/memory")
    assert [task.name for task in memory.tasks] == ["general", "reverse", "no"]
    assert [len(task.samples) for task in memory.tasks] == [5, 3, 3]
    assert memory.generation == 2
    assert memory.tasks[0].info == {"general": True}
    # General samples are replayed during the first task already, and task seeds count tasks alone.
    log = teach(base, tmp_path / "again", two_tasks()[:1], settings)[0].log
    assert any("loss_replay" in line for line in log)
    teach(base, tmp_path / "without", two_tasks(), config_for(method, tmp_path))
    chosen = [[sample.prompt for sample in task.samples] for task in memory.tasks]
    assert chosen[1:] == [
        [sample.prompt for sample in task.samples] for task in ReplayMemory.open(tmp_path / "without/memory").tasks
    ]
    signal = memory.tasks[0].samples[0].logits
    if signal is not None:  # the base model's own opinion, not that of the model after the first task
        from transformers import AutoModelForCausalLM

        sample = memory.tasks[0].samples[0]
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(base)(input_ids=sample.ids_L[None]).logits[0]
        expected = logits.softmax(-1)[signal.position_A]
        prob_AK, token_AK, bucket_A, _ = signal.decode()
        torch.testing.assert_close(prob_AK, expected.gather(-1, token_AK))
        assert bucket_A.max() < 1e-5


def test_the_optimizer_is_carried_over_if_asked(base: Path, tmp_path: Path) -> None:
    for name, carry in (("fresh", False), ("carried", True)):
        teach(base, tmp_path / name, two_tasks(), config_for("seekr", tmp_path, carry_optimizer=carry))
        assert (tmp_path / name / "m1/seekr_carry.safetensors").exists() == carry
    assert_same(weights(tmp_path / "fresh/m1"), weights(tmp_path / "carried/m1"))
    assert differs(weights(tmp_path / "fresh/m2"), weights(tmp_path / "carried/m2"))
    # It is the file that carries: without it the second task begins with a fresh optimizer.
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "carried", other)
    (other / "m1/seekr_carry.safetensors").unlink()
    shutil.rmtree(other / "m2")
    shutil.rmtree(other / "memory")
    shutil.rmtree(tmp_path / "carried/memory")
    method = config_for("replay", tmp_path, carry_optimizer=True, replay={"samples": 0})
    for place in (tmp_path / "carried", other):
        learn(place / "m1", two_tasks()[1], place / "memory", place / "m3", method)
    assert differs(weights(tmp_path / "carried/m3"), weights(other / "m3"))
    (other / "m1/seekr_carry.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"seekr_carry\.safetensors: damaged"):
        learn(other / "m1", two_tasks()[1], tmp_path / "new", other / "m4", method)


def warned(base: Path, folder: Path, config: Any, tasks: list[Any] | None = None) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        teach(base, folder, tasks or two_tasks(), config)
    return "\n".join(str(warning.message) for warning in caught if issubclass(warning.category, NoEffectWarning))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_inert_is_said(base: Path, tmp_path: Path, method: str) -> None:
    assert warned(base, tmp_path / "fine", config_for(method, tmp_path)) == ""
    nothing = warned(base, tmp_path / "ratio", config_for(method, tmp_path, replay={"ratio": 0}))
    assert nothing.count("nothing of this task is kept") == 2
    assert f"the memory holds no samples, so {method} is plain fine-tuning" in nothing
    silent = config_for(method, tmp_path, preset="official", replay={"samples": 12, "batch_size": 1})
    assert "replay never comes: 12 samples, but the cadence gives no batch" in warned(base, tmp_path / "q", silent)
    rare = config_for(method, tmp_path, replay={"samples": 2, "every": 100})
    assert "replay never comes: 2 samples" in warned(base, tmp_path / "rare", rare)


def test_budgets_that_leave_no_head_are_said(base: Path, tmp_path: Path) -> None:
    for key in ("head_budget", "layer_budget"):
        none = config_for({"name": "seekr", key: 0}, tmp_path)
        assert "no head is chosen" in warned(base, tmp_path / key, none)
        assert all(task.heads == {} for task in ReplayMemory.open(tmp_path / key / "memory").tasks)
    off = config_for({"name": "seekr", "head_budget": 0, "lambda2": 0}, tmp_path)
    assert warned(base, tmp_path / "off", off) == ""
    many = config_for({"name": "seekr", "head_budget": 99, "layer_budget": 50}, tmp_path)
    said = warned(base, tmp_path / "many", many)
    assert "method.head_budget: 99 is more than the model has, using all 8" in said
    assert "method.layer_budget: 50 is more than the model has, using all 2" in said


def test_a_memory_of_another_method(base: Path, tmp_path: Path) -> None:
    """Refused before the first step, or told, and the signals that are there are used."""
    tasks = two_tasks()
    for kept_by in ("replay", "derpp"):
        teach(base, tmp_path / kept_by, tasks[:1], config_for(kept_by, tmp_path))
    place = tmp_path / "replay"
    with pytest.raises(ConfigError, match="some samples have no teacher logits"):
        learn(place / "m1", tasks[1], place / "memory", place / "m2", config_for("derpp", tmp_path))
    assert not (place / "m2").exists()
    place = tmp_path / "derpp"
    with pytest.warns(NoEffectWarning, match="3 of 3 samples in the memory have no attention rows"):
        learnt = learn(place / "m1", tasks[1], place / "memory", place / "m2", config_for("seekr", tmp_path))
    assert any(line.get("loss_logits", 0) > 0 for line in learnt.log)
    replay = config_for("replay", tmp_path)
    learn(place / "m2", reverse_task("third"), place / "memory", place / "m3", replay)


def test_the_kept_tokens_may_change_between_tasks(base: Path, tmp_path: Path) -> None:
    tasks = [*two_tasks(), constant_task("yes", "yes")]
    for number, top_k in enumerate([4, None, 9], start=1):
        config = config_for({"name": "derpp", "logits_top_k": top_k}, tmp_path, replay={"samples": 3, "share": 0.6})
        source = base if number == 1 else tmp_path / f"m{number - 1}"
        learn(source, tasks[number - 1], tmp_path / "memory", tmp_path / f"m{number}", config)


def test_bad_input_leaves_everything_as_it_was(base: Path, tmp_path: Path) -> None:
    task, config = reverse_task(), config_for("seekr", tmp_path)
    teach(base, tmp_path, [task], config)
    before = (tmp_path / "memory/manifest.json").read_bytes()
    other = save_base(tmp_path / "other", seed=1)
    cases: list[tuple[Any, Any, type[SeekrError], str]] = [
        (base, tmp_path / "x", MemoryFormatError, "belongs to another model"),
        (other, tmp_path / "x", MemoryFormatError, "belongs to another model"),
        (tmp_path / "m1", tmp_path / "m1", OutputError, "already exists and is not empty"),
        (tmp_path / "absent", tmp_path / "x", ModelError, "no such model folder"),
        (tmp_path / "memory", tmp_path / "x", ModelError, "holds no config.json"),
    ]
    for model, output, kind, message in cases:
        with pytest.raises(kind, match=message):
            learn(model, task, tmp_path / "memory", output, config)
        assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="seekr learns one task at a time, 2 were given"):
        learn(base, two_tasks(), tmp_path / "new", tmp_path / "x", config)
    assert (tmp_path / "memory/manifest.json").read_bytes() == before
    assert not (tmp_path / "new").exists()

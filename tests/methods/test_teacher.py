"""Adapters kept as teachers: in the memory like everything else, and asked by their own task's samples."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import assert_same, config_for, constant_task, differs, reverse_task, save_base, teach, weights

from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.archive import export, import_
from seekr_cl.memory.budget import task_bytes
from seekr_cl.memory.maintenance import collect, forget, verify
from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.models.loading import load_model
from seekr_cl.training import learn

SETTINGS: dict[str, Any] = {"peft": {"r": 4, "target_modules": "all-linear"}, "learning_rate": 1e-2}
SEEKR: dict[str, Any] = {"name": "seekr", "teacher": "adapter", "query_budget": 4}
TASKS = [reverse_task(count=8), constant_task("no", "no", 8), constant_task("yes", "yes", 8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    teach(base, folder, TASKS[:2], config_for(SEEKR, folder, **SETTINGS))
    return folder


@pytest.fixture
def memory(taught: Path, tmp_path: Path) -> Path:
    shutil.copytree(taught / "memory", tmp_path / "memory")
    return tmp_path / "memory"


def test_the_memory_keeps_the_adapter_and_no_signals(taught: Path) -> None:
    tasks = ReplayMemory.open(taught / "memory", verify=True).tasks
    for number, task in enumerate(tasks, 1):
        own = dict(load_model(taught / f"m{number}")[0].named_parameters())
        assert task.teacher is not None
        assert task.teacher.keys() == {name for name in own if "lora_" in name}
        assert_same(dict(task.teacher), {name: own[name].detach() for name in task.teacher})
        assert (task.totals.logits, task.totals.attention) == (0, len(task.samples))
        assert all(one.attention is not None and one.attention.rows is None for one in task.samples)


def test_a_batch_asks_each_sample_of_its_own_tasks_adapter(taught: Path) -> None:
    """Against the models as they were: the adapter's answer is the logits and rows of the model after its task."""
    tasks = ReplayMemory.open(taught / "memory").tasks
    model = load_model(taught / "m2")[0]
    context = Context(model, Layout(0, "left", 4), None, 0, warnings_are_errors)
    kind = get_method("seekr")
    method: Any = kind(kind.Settings(teacher="adapter", query_budget=4), context)
    method.replay_source(tasks)
    picked = [(tasks[place], tasks[place].samples[0]) for place in (1, 0, 1)]
    length = context.layout.length([len(one.ids_L) for _, one in picked])
    ids = torch.zeros((3, length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (_, one) in enumerate(picked):
        ids[row, length - len(one.ids_L) :], mask[row, length - len(one.ids_L) :] = one.ids_L, 1
    batch = {"input_ids": ids, "attention_mask": mask} | method.collate_replay(picked, length)
    answer = method.teacher.answer(batch)
    answers = {int(row): (one, place) for one in answer.logits for place, row in enumerate(one["row_G"])}
    assert len(answers) == 3
    for row, (task, sample) in enumerate(picked):
        logits, place = answers[row]
        eager = load_model(taught / f"m{tasks.index(task) + 1}")[0].eval()
        eager.set_attn_implementation("eager")
        with torch.no_grad():
            out = eager(sample.ids_L[None], output_attentions=True)
        count = len(sample.ids_L) - sample.completion_start
        prob = out.logits[0, sample.completion_start - 1 : -1].softmax(-1)
        torch.testing.assert_close(logits["prob"][place][:count], prob, rtol=0, atol=1e-5)
        (target,) = (one for one in answer.rows if row in one.index.sample_P)
        assert target.layers.keys() == task.heads.keys()
        for layer, pairs in target.layers.items():
            part = target.tile(pairs)
            mine = part.index.sample_P == row
            rows = out.attentions[layer][0, task.heads[layer]][:, sample.attention.query_R]
            own = part.teacher.prob_PRL[mine][..., length - len(sample.ids_L) :]
            torch.testing.assert_close(own[:, : rows.shape[1]], rows, rtol=0, atol=1e-5)
    method.close()


def warnings_are_errors(message: str) -> None:
    raise AssertionError(message)


def test_stored_and_asked_samples_in_one_memory(base: Path, taught: Path, memory: Path, tmp_path: Path) -> None:
    """The setting says how a new task is kept; old ones come back as they were kept, in the same batches."""
    stored = config_for({"name": "seekr", "query_budget": 4}, tmp_path, **SETTINGS)
    learn(taught / "m2", TASKS[2], memory, tmp_path / "m3", stored)
    task = constant_task("maybe", "maybe", 8)
    done = [
        learn(tmp_path / "m3", task, memory if name == "a" else tmp_path / "copy", tmp_path / name, config)
        for name, config in (("a", config_for(SEEKR, tmp_path, **SETTINGS)),)
    ]
    kinds = [one.teacher is not None for one in ReplayMemory.open(memory, verify=True).tasks]
    assert kinds == [True, True, False, True]
    losses = [line for line in done[0].log if "loss_logits" in line]
    assert losses
    assert all(line["loss_logits"] > 0 and line["loss_attention"] > 0 for line in losses)
    assert any(line.get("share_attention", 0) > 0 for line in done[0].log)


def test_it_is_verified_collected_exported_and_forgotten(memory: Path, tmp_path: Path) -> None:
    assert verify(memory)[1] == []
    export(memory, tmp_path / "memory.tar")
    copy = import_(tmp_path / "memory.tar", tmp_path / "imported")
    assert all(task.teacher is not None for task in copy.tasks)
    assert collect(memory, keep=1)[0]
    assert ReplayMemory.open(memory, verify=True).tasks[0].teacher
    size = (memory / "teacher-0001.safetensors").stat().st_size
    assert forget(memory, task="reverse").freed > size
    assert not (memory / "teacher-0001.safetensors").exists()
    assert ReplayMemory.open(memory, verify=True).tasks[0].teacher is None
    (memory / "teacher-0002.safetensors").write_bytes(b"x" * (memory / "teacher-0002.safetensors").stat().st_size)
    assert "teacher-0002.safetensors" in verify(memory)[1][0]


def test_a_budget_in_bytes_counts_it_and_keeps_it(taught: Path, memory: Path, tmp_path: Path) -> None:
    store = ReplayMemory.open(memory)
    sizes = [task_bytes(task.samples) for task in store.tasks]
    each = max(one for _, many in sizes for one in many)
    teacher = (memory / "teacher-0001.safetensors").stat().st_size
    limit = 3 * (teacher + each) + 3 * max(header for header, _ in sizes)
    config = config_for(SEEKR, tmp_path, memory={"max_bytes": limit}, **SETTINGS)
    learn(taught / "m2", TASKS[2], memory, tmp_path / "m3", config)
    after = ReplayMemory.open(memory, verify=True)
    assert all(task.teacher is not None and len(task.samples) > 0 for task in after.tasks)
    assert len(after.tasks[0].samples) < len(store.tasks[0].samples)
    names = [f"000{n}-*" for n in (1, 2, 3)] + ["teacher-*"]
    used = {f["file"] for task in after.current.tasks for f in [*task["files"], task["teacher"]]}
    assert sum(path.stat().st_size for name in names for path in memory.glob(name) if path.name in used) <= limit


def test_without_an_adapter_there_is_nothing_to_keep(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an adapter to keep; set peft"):
        learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m1", config_for(SEEKR, tmp_path))


def test_signals_that_nobody_stores_have_no_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.logits_top_k: would be ignored"):
        config_for({**SEEKR, "logits_top_k": 3}, tmp_path, **SETTINGS)


@pytest.mark.parametrize("teacher", ["stored", "adapter"])
def test_prompts_are_for_methods_that_do_not_look_at_attention(base: Path, tmp_path: Path, teacher: str) -> None:
    prompt = {"peft": {"peft_type": "prompt_tuning", "num_virtual_tokens": 3}, "learning_rate": 1e-2}
    with pytest.raises(ConfigError, match="shift every attention row"):
        learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m0", config_for("seekr", tmp_path, **prompt))
    teach(base, tmp_path, TASKS[:2], config_for({"name": "derpp", "teacher": teacher}, tmp_path, **prompt))
    assert differs(weights(tmp_path / "m1"), weights(tmp_path / "m2"))


def test_a_damaged_teacher_is_named_before_training(taught: Path, memory: Path, tmp_path: Path) -> None:
    path = memory / "teacher-0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(MemoryFormatError, match=r"teacher-0001\.safetensors"):
        learn(taught / "m2", TASKS[2], memory, tmp_path / "m3", config_for(SEEKR, tmp_path, **SETTINGS))

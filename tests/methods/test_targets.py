"""SEEKR's other targets against hooks on the model's own projections: values, head outputs, and their distances.

The reference knows nothing of the tap: v is what ``v_proj`` gives, a head's output is its part of what ``o_proj`` gets.
Value and gradient are worked out pair by pair.
"""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import HEADS, LAYERS, config_for, constant_task, differs, memory_tensors, reverse_task, teach
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.attention.stored import StoredOutputs
from seekr_cl.attention.stored.codec import encode_vectors
from seekr_cl.errors import ConfigError
from seekr_cl.memory import AttentionSignal, ReplayMemory
from seekr_cl.memory.sample_codec import pack, unpack
from seekr_cl.memory.samples import check_sample
from seekr_cl.memory.signals import OutputSignal
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.training import learn

TARGETS = ("values", "hidden", "relations")
COMMON: dict[str, Any] = {"attention_signal": "dense", "head_budget": 5, "query_budget": 4, "lambda2": 50.0}


@pytest.fixture(scope="module")
def kept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One task learned for each target."""
    folders = {}
    for target in TARGETS:
        folders[target] = tmp_path_factory.mktemp(target)
        # Outputs are kept with no regard to how rows are.
        settings = {"name": "seekr", "target": target, **COMMON}
        config = config_for(settings, folders[target], num_train_epochs=2, learning_rate=0.01)
        teach(base, folders[target], [reverse_task()], config)
    return folders


def seen(model: Any, ids_L: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Values [K, L, D] and head outputs [H, L, D] of each layer, from the projections around attention."""
    values, outputs, hooks = [], [], []
    for layer in model.model.layers:
        hooks.append(layer.self_attn.v_proj.register_forward_hook(lambda module, given, out: values.append(out[0])))
        hooks.append(
            layer.self_attn.o_proj.register_forward_pre_hook(lambda module, given: outputs.append(given[0][0]))
        )
    model(input_ids=ids_L[None])
    for hook in hooks:
        hook.remove()
    values = [v.view(len(v), -1, 8).transpose(0, 1) for v in values]
    return values, [o.view(len(o), HEADS, 8).transpose(0, 1) for o in outputs]


def row_loss(
    target: str, then: tuple[Any, Any], now: tuple[Any, Any], layer: int, head: int, query_R: list[int]
) -> Any:
    """One sample's mean over queries at one head."""
    if target == "values":
        losses = []
        for query in query_R:
            both = []
            for values, _ in (then, now):
                v = values[layer][head // 2]
                both.append((v[: query + 1] @ v[query] / math.sqrt(8)).softmax(0))
            losses.append((both[0] * (both[0] / both[1]).log()).sum())
        return sum(losses) / len(losses)
    points = [outputs[layer][head][query_R] for _, outputs in (then, now)]
    if target == "hidden":
        return sum(((a - b) ** 2).sum() / 8 for a, b in zip(*points)) / len(query_R)
    pairs = [(i, j) for i in range(len(query_R)) for j in range(len(query_R)) if i != j]
    distances = [torch.stack([((x[i] - x[j]) ** 2).sum().sqrt() for i, j in pairs]) for x in points]
    moved = [abs(a - b) for a, b in zip(*(d / d.mean() for d in distances))]
    return sum(0.5 * m * m if m < 1 else m - 0.5 for m in moved) / len(pairs)


@pytest.mark.parametrize("reentrant", [None, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_value_and_gradient_are_those_of_the_formula(
    kept: Any, base: Path, target: str, reentrant: bool | None
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(kept[target] / "m1").eval()
    student = AutoModelForCausalLM.from_pretrained(base).eval()
    twin = copy.deepcopy(student)
    memory = ReplayMemory.open(kept[target] / "memory")
    picked = [memory.samples[i] for i in range(3)]
    assert len({len(sample.ids_L) for _, sample in picked}) > 1
    if reentrant is not None:
        student.gradient_checkpointing_enable({"use_reentrant": reentrant})
        student.train()
        student.enable_input_require_grads()
    layout = Layout(0, "left")
    method = Seekr(SeekrSettings(target=target, lambda2=1.0), Context(student, layout, None, 0, pytest.fail))
    try:
        batch = ScheduledBatches([MicroBatch(replay=(0, 1, 2))], [], picked, method, layout)[0]["replay"]
        terms = method.replay_loss(student, batch)
        value = terms["attention"].value
        # The logits are part of every loss; through them the backward pass reaches the layers.
        (value + 0 * terms["replay"].value).backward()
    finally:
        method.close()

    expected = []
    for task, sample in picked:
        with torch.no_grad():
            then = seen(teacher, sample.ids_L)
        now, query_R = seen(twin, sample.ids_L), sample.attention.query_R.tolist()
        layers = [
            sum(row_loss(target, then, now, layer, head, query_R) for head in heads) / len(heads)
            for layer, heads in task.heads.items()
        ]
        expected.append(sum(layers) / len(layers))
    loss = sum(expected) / len(expected)
    assert float(loss.detach()) > 1e-6
    assert float(value.detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    loss.backward()
    theirs = dict(twin.named_parameters())
    for name, weight in student.named_parameters():
        wanted = theirs[name].grad
        if wanted is not None and name.startswith("model.layers"):
            torch.testing.assert_close(weight.grad, wanted, rtol=1e-3, atol=1e-6 * float(loss.detach()) + 1e-8)
    assert student.model.layers[0].self_attn.v_proj.weight.grad.any()


def test_the_heads_are_those_that_attention_chooses(kept: Any, base: Path, tmp_path: Path) -> None:
    config = config_for({"name": "seekr", **COMMON}, tmp_path, num_train_epochs=2, learning_rate=0.01)
    teach(base, tmp_path, [reverse_task()], config)
    heads = ReplayMemory.open(tmp_path / "memory").tasks[0].heads
    assert 0 < sum(map(len, heads.values())) < LAYERS * HEADS
    for target in TARGETS:
        assert ReplayMemory.open(kept[target] / "memory").tasks[0].heads == heads
    one, other = (memory_tensors(kept[target] / "memory") for target in ("hidden", "relations"))
    assert not differs(one, other)  # the same outputs are kept for both


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_signals_come_back_from_bytes(kept: Any, dtype: str) -> None:
    memory = ReplayMemory.open(kept["hidden"] / "memory")
    task, sample = memory.samples[0]
    rows = sample.attention.rows
    assert isinstance(rows, StoredOutputs)
    small = type(rows)(*encode_vectors(rows.decode(), dtype))
    lean = OutputSignal(sample.attention.query_R, small)
    one = replace(sample, signals={"outputs": lean})
    check_sample(one, task.heads)
    (back,) = unpack(pack([one]), [{"prompt": sample.prompt, "completion": sample.completion}])
    assert back.signals.keys() == {"outputs"}
    assert type(back.attention) is OutputSignal
    assert not differs(back.attention.rows.tensors(), small.tensors())
    limit = {"float32": 0.0, "float16": 1e-3, "int8": 1 / 127}[dtype]
    assert float((small.decode() - rows.decode()).abs().max()) <= limit * float(rows.decode().abs().max())
    misplaced = AttentionSignal(sample.attention.query_R, small)
    with pytest.raises(ValueError, match="attention/form of"):
        check_sample(replace(one, signals={"attention": misplaced}), task.heads)


def test_signals_for_another_target_are_left_out_aloud(kept: Any, tmp_path: Path) -> None:
    shutil.copytree(kept["values"] / "memory", tmp_path / "memory")
    config = config_for({"name": "seekr", "target": "hidden", "head_budget": 5, "lambda2": 50.0}, tmp_path)
    with pytest.warns(UserWarning, match="3 of 3 samples in the memory have no outputs rows"):
        learn(kept["values"] / "m1", constant_task("no", "no"), tmp_path / "memory", tmp_path / "m2", config)


def test_settings_of_rows_are_refused_where_outputs_are_held(tmp_path: Path) -> None:
    for key, value in (("attention_tail", "bucket"), ("attention_eps", 0.1)):
        with pytest.raises(ConfigError, match=rf"method\.{key}: would be ignored"):
            config_for({"name": "seekr", "target": "relations", key: value}, tmp_path)
        assert config_for({"name": "seekr", "target": "values", key: value}, tmp_path)

"""A stranger's memory, whole by its hashes, is refused before a model learns from it, and nothing is touched."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_memory import resign
from tinylm import config_for, constant_task, reverse_task, save_base

from seekr_cl.cli.main import main
from seekr_cl.heads import HeadImportance
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.training import learn


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with four heads, 64 positions, and its memory."""
    folder = tmp_path_factory.mktemp("learnt")
    config = config_for({"name": "seekr", "logits_top_k": 4}, folder)
    learn(save_base(folder / "base"), reverse_task(), folder / "memory", folder / "m1", config)
    return folder


def first(sample: ReplaySample, field: str, number: int) -> ReplaySample:
    """The sample with another number at the first place of its tokens or of one of its signals' tensors."""
    if field == "ids_L":
        ids_L = sample.ids_L.clone()
        ids_L[0] = number
        return replace(sample, ids_L=ids_L)
    signal = sample.logits if field in ("token_AK", "position_A") else sample.attention
    assert signal is not None
    tensor = getattr(signal, field).clone()
    tensor.view(-1)[0] = number
    kind = "logits" if signal is sample.logits else "attention"
    return replace(sample, signals=dict(sample.signals) | {kind: replace(signal, **{field: tensor})})


def other_heads(heads: dict[int, list[int]], layer: int | None = None, head: int | None = None) -> dict[int, list[int]]:
    """The same heads, but one of another layer, or another in its first layer."""
    *rest, last = sorted(heads)
    if layer is not None:
        return {key: heads[key] for key in rest} | {layer: heads[last]}
    begin = min(heads)
    return heads | {begin: [*heads[begin][:-1], head]}  # type: ignore[list-item]


CHANGES: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "token": (lambda task: {"samples": [first(one, "ids_L", 60_000) for one in task.samples]}, "token 60000"),
    "negative token": (lambda task: {"samples": [first(one, "ids_L", -3) for one in task.samples]}, "is not one"),
    "token of logits": (
        lambda task: {"samples": [first(one, "token_AK", 120) for one in task.samples]}, "logits of token 120",
    ),
    "position": (lambda task: {"samples": [first(one, "position_A", 63) for one in task.samples]}, "is not one"),
    "query": (lambda task: {"samples": [first(one, "query_R", 500) for one in task.samples]}, "is not one"),
    "length": (
        lambda task: {"samples": [replace(task.samples[0], ids_L=torch.full((2000,), 5))]}, "2000 tokens",
    ),
    "head": (lambda task: {"heads": other_heads(task.heads, head=99)}, "head 99"),
    "negative head": (lambda task: {"heads": other_heads(task.heads, head=-24)}, "heads"),
    "layer": (lambda task: {"heads": other_heads(task.heads, layer=77)}, "heads of layer 77"),
}  # fmt: skip


def remade(former: ReplayMemory, folder: Path, task: MemoryTask, importance: HeadImportance | None) -> None:
    """A memory of one task that belongs to the same model, with hashes of its own that are right."""
    assert former.model_sha256 is not None
    assert former.tokenizer_sha256 is not None
    ReplayMemory.open(folder, create=True).commit(
        [task], importance=importance, model_sha256=former.model_sha256, tokenizer_sha256=former.tokenizer_sha256,
        method={"name": "seekr"},
    )  # fmt: skip


def refused(folder: Path, memory: Path, output: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = output.parent / "task.json"
    data.write_text(json.dumps([{"prompt": "a?", "answer": "no"}] * 4), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in memory.rglob("*")}
    given = ["--model", folder / "m1", "--task", data, "--memory", memory, "--output", output]
    assert main(["learn", *map(str, given), "use_cpu=true", "progress=none", "replay.ratio=0.5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {memory}")
    assert error.count("\n") == 1
    assert said in error
    assert {path: path.stat().st_mtime_ns for path in memory.rglob("*")} == before
    assert not output.exists()


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_stranger_s_samples_say(
    learnt: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = CHANGES[name]
    former = ReplayMemory.open(learnt / "memory")
    (task,) = former.tasks
    remade(former, tmp_path / "memory", replace(task, **change(task)), former.importance)
    refused(learnt, tmp_path / "memory", tmp_path / "out", said, capsys)


def test_what_a_stranger_s_importance_says(learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    former = ReplayMemory.open(learnt / "memory")
    remade(former, tmp_path / "memory", former.tasks[0], HeadImportance.zeros({0: 4, 90: 4}))
    refused(learnt, tmp_path / "memory", tmp_path / "out", "head importance of layer 90", capsys)


def test_a_key_that_nobody_knows(learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learn(
        learnt / "base", constant_task("one", "no"), tmp_path / "memory", tmp_path / "m1", config_for("seekr", tmp_path)
    )
    resign(tmp_path / "memory", lambda document: document["tasks"][0].update(strange=1))
    refused(tmp_path, tmp_path / "memory", tmp_path / "out", "'strange' is unknown", capsys)

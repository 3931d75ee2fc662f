"""Samples stay on disk: opening reads none of them, training reads those it needs, workers read their own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_memory import HEADS, commit, make_sample, make_task
from torch.utils.data import DataLoader, Dataset

from seekr_cl.attention.stored import StoredFactors
from seekr_cl.errors import ConfigError
from seekr_cl.memory import AttentionSignal, LogitSignal, MemoryTask, ReplayMemory, ReplaySample, TaskSamples, Totals
from seekr_cl.memory.shard import StoredSamples
from seekr_cl.methods.common.logit_distillation import require_all_logits


def factors(number: int, length: int, dtype: str, sink: bool) -> ReplaySample:
    """A sample whose rows are kept as queries and keys."""
    draw = torch.Generator().manual_seed(number)
    q_MRD, k_GLD = torch.randn((3, 2, 4), generator=draw), torch.randn((2, length, 4), generator=draw)
    steps: dict[str, Any] = {}
    if dtype == "int8":
        q_MRD, k_GLD = (100 * q_MRD).to(torch.int8), (100 * k_GLD).to(torch.int8)
        steps = {"q_step_MR": torch.rand(3, 2).half(), "k_step_GL": torch.rand(2, length).half()}
    rows = StoredFactors(q_MRD, k_GLD, torch.tensor([0, 1, 1], dtype=torch.uint8), **steps)
    if sink:
        rows = StoredFactors(rows.q_MRD, rows.k_GLD, rows.group_M, rows.q_step_MR, rows.k_step_GL, torch.rand(3))
    logits = LogitSignal.encode(torch.tensor([length - 2]), torch.randn((1, 300), generator=draw), 70, "int8")
    ids_L = torch.randint(300, (length,), generator=draw)
    return ReplaySample(
        "p" * number,
        f"{number}",
        ids_L,
        length - 1,
        {"logits": logits, "attention": AttentionSignal(torch.tensor([0, 1]), rows)},
    )


def test_every_form_in_one_task(tmp_path: Path) -> None:
    """Different lengths (so narrower and wider positions), precisions, forms and no signals at all, side by side."""
    bare = make_sample(7)
    samples = [
        make_sample(0), make_sample(1, dense=True), make_sample(2, dtype="int8"), make_sample(3, dtype="float32"),
        make_sample(4, dense=True, dtype="bfloat16"), factors(5, 9, "float32", False), factors(6, 300, "int8", True),
        factors(7, 3, "int8", False), ReplaySample("", "", bare.ids_L[:1], 0),
        ReplaySample("only logits", "", bare.ids_L, 5, {"logits": bare.logits}),
        ReplaySample("empty", "", bare.ids_L[:0], 0),
    ]  # fmt: skip
    commit(ReplayMemory(tmp_path / "memory"), MemoryTask("task", samples, dict(HEADS)))
    (task,) = ReplayMemory.open(tmp_path / "memory", verify=True).tasks
    for given, found in zip(samples, task.samples, strict=True):
        assert (given.prompt, given.completion, given.sample_id) == (found.prompt, found.completion, found.sample_id)
        assert torch.equal(given.ids_L, found.ids_L)
        for one, other in ((given.logits, found.logits), (given.attention, found.attention)):
            assert (one is None) == (other is None)
        if given.logits is not None:
            assert torch.equal(given.logits.decode()[0], found.logits.decode()[0])
        if given.attention is not None:
            mine, theirs = given.attention.rows.tensors(), found.attention.rows.tensors()
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
            assert all(mine[name].dtype == theirs[name].dtype for name in mine)
    assert task.totals == Totals.of(samples)
    assert [task.samples.num_tokens(n) for n in range(len(samples))] == [len(sample.ids_L) for sample in samples]


def test_a_sequence_like_any_other(folder: Path) -> None:
    memory = ReplayMemory.open(folder)
    samples, pairs = memory.tasks[0].samples, memory.samples
    assert [sample.prompt for sample in samples[:]] == [samples[0].prompt, samples[1].prompt]
    assert samples[-1].prompt == "prompt 1 ∑"
    assert [(task.name, sample.prompt[:8]) for task, sample in pairs] == [
        ("first", "prompt 0"), ("first", "prompt 1"), ("second", "prompt 2"), ("second", "prompt 3"),
    ]  # fmt: skip
    assert pairs[-1][1].prompt == pairs[3][1].prompt == pairs[2:][1][1].prompt == "prompt 3 ∑"
    empty = MemoryTask("none", [])
    assert [task.name for task, _ in TaskSamples([empty, memory.tasks[1], empty, memory.tasks[0]])] == [
        "second", "second", "first", "first",
    ]  # fmt: skip
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            pairs[wrong]
    with pytest.raises(IndexError):
        samples[2]
    # What is handed out belongs to whoever has it.
    samples[0].ids_L.zero_()
    samples[0].logits.code_AK.zero_()
    assert samples[0].ids_L.any()


def test_opening_and_asking_for_signals_reads_no_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = MemoryTask("bare", [ReplaySample("p", "c", torch.arange(3), 1)])

    def never(*_: Any) -> None:
        raise AssertionError("a sample was read")

    monkeypatch.setattr(StoredSamples, "__getitem__", never)
    memory = ReplayMemory.open(folder)
    assert len(memory.samples) == 4
    assert memory.tasks[0].totals == Totals(2, 18, 2, 6, 2, 8)
    require_all_logits(memory.tasks)
    with pytest.raises(ConfigError, match="some samples have no teacher logits"):
        require_all_logits([*memory.tasks, bare])


class Pairs(Dataset[tuple[str, int]]):
    """The memory's samples as a data loader asks for them."""

    def __init__(self, memory: ReplayMemory) -> None:
        self.samples = memory.samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, int]:
        task, sample = self.samples[index]
        return task.name + sample.prompt, int(sample.ids_L.sum())


def test_forked_workers_read_the_same(folder: Path) -> None:
    commit(ReplayMemory.open(folder), make_task("third", 10, 30), model="m3")
    pairs = Pairs(ReplayMemory.open(folder))
    here = [pairs[i] for i in range(len(pairs))]
    loader = DataLoader(pairs, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        assert [tuple(pair) for pair in loader] == here
    assert len(here) == 34


def test_a_samples_texts_are_read_when_they_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read = [], StoredSamples.text
    monkeypatch.setattr(StoredSamples, "text", lambda self, number: asked.append(number) or read(self, number))
    _, sample = ReplayMemory.open(folder).samples[1]
    assert sample.ids_L.any()
    assert sample.logits is not None
    assert sample.attention is not None
    assert asked == []
    assert (sample.prompt, sample.completion) == ("prompt 1 ∑", "completion 1\n")
    assert replace(sample, signals={}).prompt == sample.prompt
    assert asked == [1]
    with pytest.raises(AttributeError, match="promt"):
        _ = sample.promt

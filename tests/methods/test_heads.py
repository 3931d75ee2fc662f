"""Which heads SEEKR keeps, and that every sample of a mixed batch is held to its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import HEADS, LAYERS, config_for, constant_task, reverse_task, rows_of, teach
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.attention.stored import join_layers
from seekr_cl.memory import MemoryTask, ReplayMemory
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seekr.settings import SeekrSettings
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.schedule import MicroBatch

LAYOUT = Layout(pad_id=0)


def keep(base: Path, folder: Path, replay: Any = None, **settings: Any) -> ReplayMemory:
    """The memory after two tasks."""
    config = config_for({"name": "seekr", "lambda2": 10.0} | settings, folder, replay=replay or {"samples": 3})
    teach(base, folder, [reverse_task(), constant_task("no", "no")], config)
    return ReplayMemory.open(folder / "memory")


def largest(scores_NH: Tensor, layer_budget: int, head_budget: int) -> dict[int, list[int]]:
    """Eq. 11 by sorting: first the layers by their sums, then the heads inside them."""
    layers = sorted(range(LAYERS), key=lambda n: -float(scores_NH[n].sum()))[:layer_budget]
    inside = sorted(((float(scores_NH[n, h]), n, h) for n in layers for h in range(HEADS)), reverse=True)[:head_budget]
    return {n: sorted(h for _, m, h in inside if m == n) for n in sorted({n for _, n, _ in inside})}


@pytest.mark.parametrize("choice", ["importance", "sensitivity", "forgettability"])
@pytest.mark.parametrize(("layers", "heads"), [(2, 3), (1, 2), (1, 8), (2, 8)])
def test_the_highest_scores_are_kept(base: Path, tmp_path: Path, choice: str, layers: int, heads: int) -> None:
    memory = keep(base, tmp_path, heads=choice, layer_budget=layers, head_budget=heads)
    scores = {
        "importance": memory.importance.sensitivity_NH * memory.importance.forgettability_NH,
        "sensitivity": memory.importance.sensitivity_NH,
        "forgettability": memory.importance.forgettability_NH,
    }[choice]
    assert memory.tasks[1].heads == largest(scores, layers, heads)
    assert sum(map(len, memory.tasks[1].heads.values())) == min(heads, layers * HEADS)
    assert float(scores.min()) >= 0
    # After two tasks each layer's sensitivities sum to two: one for each task.
    torch.testing.assert_close(memory.importance.sensitivity_NH.sum(1), torch.full((LAYERS,), 2.0))


def test_the_factors_choose_differently(base: Path, tmp_path: Path) -> None:
    kept = {name: keep(base, tmp_path / name, heads=name, layer_budget=None, head_budget=3).importance for name in
            ("importance", "sensitivity")}  # fmt: skip
    # How heads are chosen has no part in how they are scored after the first task, only in what is replayed later.
    assert kept["importance"].layers == kept["sensitivity"].layers == tuple(range(LAYERS))
    orders = {
        tuple(score.flatten().argsort().tolist())
        for score in (
            kept["importance"].sensitivity_NH,
            kept["importance"].forgettability_NH,
            kept["importance"].scores(),
        )
    }
    assert len(orders) > 1


def test_all_heads_whatever_the_budgets(base: Path, tmp_path: Path) -> None:
    memory = keep(base, tmp_path, heads="all", layer_budget=1, head_budget=1)
    assert [task.heads for task in memory.tasks] == [{n: list(range(HEADS)) for n in range(LAYERS)}] * 2
    rows = rows_of(*memory.samples[0])
    assert [rows[n].shape[0] for n in range(LAYERS)] == [HEADS] * LAYERS


def test_random_heads_fill_the_budgets_and_come_from_the_seed(base: Path, tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate([1, 1, 2, 3, 4]):
        config = config_for(
            {"name": "seekr", "heads": "random", "layer_budget": 2, "head_budget": 3}, tmp_path, seed=seed
        )
        teach(base, tmp_path / str(number), [reverse_task()], config)
        drawn.append(ReplayMemory.open(tmp_path / str(number) / "memory").tasks[0].heads)
        assert sum(map(len, drawn[-1].values())) == 3
    assert drawn[0] == drawn[1]
    assert len({str(heads) for heads in drawn}) > 2


def test_random_heads_do_not_depend_on_what_was_learnt(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"name": "seekr", "heads": "random", "head_budget": 2}
    for name, task in (("a", reverse_task()), ("b", constant_task("no", "no"))):
        teach(base, tmp_path / name, [task], config_for(settings, tmp_path))
    assert len({str(ReplayMemory.open(tmp_path / name / "memory").tasks[0].heads) for name in "ab"}) == 1


@pytest.fixture(scope="module")
def mixed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[tuple[MemoryTask, Any]]]:
    """A student and samples of three tasks whose heads overlap in no simple way."""
    folder = tmp_path_factory.mktemp("mixed")
    memory = keep(base, folder, heads="all", attention_signal="dense", query_budget=5, replay={"samples": 2})
    student = AutoModelForCausalLM.from_pretrained(base).eval()
    choices: list[dict[int, list[int]]] = [{0: [1, 3]}, {0: [0], 1: [1, 2, 3]}]
    picked = []
    for (task, sample), heads in zip([memory.samples[0], memory.samples[2]], choices):
        rows = [sample.attention.of_layer(task.heads, layer).pick(chosen) for layer, chosen in heads.items()]
        signal = type(sample.attention)(sample.attention.query_R, join_layers(rows))
        picked.append((MemoryTask(task.name, [], heads), type(sample)(
            sample.prompt, sample.completion, sample.ids_L, sample.completion_start,
            {"logits": sample.logits, "attention": signal},
        )))  # fmt: skip
    return student, picked


def terms(student: Any, picked: list[Any], reduction: str) -> tuple[float, dict[int, Any]]:
    settings = SeekrSettings(lambda2=1.0, attention_reduction=reduction)
    method = Seekr(settings, Context(student, LAYOUT, None, seed=0, warn=lambda _: None))
    try:
        batch = ScheduledBatches([MicroBatch(replay=tuple(range(len(picked))))], [], picked, method, LAYOUT)[0][
            "replay"
        ]
        value = float(method.replay_loss(student, batch)["attention"].value.detach())
        return value, method.tap.action.targets
    finally:
        method.close()


def test_a_mixed_batch_holds_every_sample_to_its_own_heads(mixed: Any) -> None:
    student, picked = mixed
    _, targets = terms(student, picked, "sample_mean")
    places = {
        layer: list(zip(target.index.sample_P.tolist(), target.index.head_P.tolist()))
        for layer, (target,) in targets.items()
    }
    assert places == {0: [(0, 1), (0, 3), (1, 0)], 1: [(1, 1), (1, 2), (1, 3)]}
    for layer, (target,) in targets.items():
        for row, (number, head) in enumerate(places[layer]):
            task, sample = picked[number]
            length, count = len(sample.ids_L), len(sample.attention.query_R)
            own = rows_of(task, sample)[layer][task.heads[layer].index(head)]
            assert torch.equal(target.teacher.prob_PRL[row, :count, :length], own)
            assert target.index.query_PR[row, :count].tolist() == sample.attention.query_R.tolist()
            assert not target.teacher.prob_PRL[row, :, length:].any()
            assert not target.weight_PR[row, count:].any()


def test_reductions_of_a_mixed_batch(mixed: Any) -> None:
    """From the samples alone: means over each one's own heads, the official code's union of layers, plain sums."""
    student, picked = mixed
    alone = [terms(student, [one], "sample_mean")[0] for one in picked]
    assert terms(student, picked, "sample_mean")[0] == pytest.approx(sum(alone) / 2, rel=1e-5)
    sums = [terms(student, [one], "sum")[0] for one in picked]
    assert terms(student, picked, "sum")[0] == pytest.approx(sum(sums) / 2, rel=1e-5)
    # Union of two layers: the first sample only has one of them, so it counts half of what it would alone.
    union = [terms(student, [one], "layer_mean")[0] for one in picked]
    assert union == pytest.approx(alone, rel=1e-5)
    assert terms(student, picked, "layer_mean")[0] == pytest.approx((union[0] * 1 + union[1] * 2) / 2 / 2, rel=1e-5)
    for reduction in ("sample_mean", "sum", "layer_mean"):
        assert terms(student, picked[::-1], reduction)[0] == pytest.approx(
            terms(student, picked, reduction)[0], rel=1e-5
        )

"""BFP's matrices against the paper's formula in float64: value, the model's gradient, the steps of the matrices.

The reference takes the heads' outputs from hooks, differentiates with autograd and steps with torch's own optimizer.
"""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from killed import KillAt, Killed
from test_targets import seen
from tinylm import assert_same, config_for, constant_task, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.attention import RowIndex, RowTarget
from seekr_cl.attention.features import DistillProjected, HeadMaps
from seekr_cl.attention.stored.outputs import OutputRows
from seekr_cl.errors import ConfigError
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seekr.settings import SeekrSettings
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.training import learn

BFP: dict[str, Any] = {"name": "seekr", "target": "hidden", "head_budget": 5, "query_budget": 4, "lambda2": 20.0}
Picked = list[tuple[MemoryTask, ReplaySample]]


@pytest.fixture(scope="module")
def learnt(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks whose outputs are kept exactly."""
    folder = tmp_path_factory.mktemp("learnt")
    config = config_for(BFP, folder, num_train_epochs=2, learning_rate=0.01)
    teach(base, folder, [reverse_task(), constant_task("no", "no")], config)
    return folder


class Reference:
    """The formula, with one matrix for each task, layer and head."""

    def __init__(self, folder: Path, maps: dict[tuple[int, int, int], Tensor]) -> None:
        self.teachers = [exact(folder / f"m{number}") for number in (1, 2)]
        self.maps = {place: one.double().requires_grad_() for place, one in maps.items()}
        self.optimizers = {place: torch.optim.SGD([one], 0.1, momentum=0.9) for place, one in self.maps.items()}

    def distances(self, model: Any, picked: Picked, tasks: list[MemoryTask]) -> dict[tuple[int, int, int, int], Tensor]:
        """For each sample, and each of its task's heads, ||A o - o'|| / sqrt(D) at its queries."""
        found = {}
        for number, (task, sample) in enumerate(picked):
            old = next(place for place, one in enumerate(tasks) if one is task)
            query_R = sample.attention.query_R.tolist()
            with torch.no_grad():
                then = seen(self.teachers[old], sample.ids_L)[1]
            now = seen(model, sample.ids_L)[1]
            for layer, heads in task.heads.items():
                for head in heads:
                    matrix = self.maps[old, layer, head]
                    off = [matrix @ now[layer][head][query] - then[layer][head][query] for query in query_R]
                    found[number, old, layer, head] = torch.stack([(one @ one / len(one)).sqrt() for one in off])
        return found

    def loss(self, model: Any, picked: Picked, tasks: list[MemoryTask]) -> Tensor:
        """The mean over a sample's queries, heads and layers, and over samples."""
        rows = self.distances(model, picked, tasks)
        return sum(
            each.mean() / len(picked[number][0].heads[layer]) / len(picked[number][0].heads)
            for (number, _, layer, _), each in rows.items()
        ) / len(picked)

    def step(self, model: Any, picked: Picked, tasks: list[MemoryTask]) -> None:
        rows = self.distances(model, picked, tasks)
        for place, optimizer in self.optimizers.items():
            own = [each for (_, *where), each in rows.items() if tuple(where) == place]
            if own:
                optimizer.zero_grad()
                torch.cat(own).mean().backward(inputs=[self.maps[place]])
                optimizer.step()


def exact(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def maps_of(method: Seekr, tasks: list[MemoryTask]) -> dict[tuple[int, int, int], Tensor]:
    found = {}
    for number, task in enumerate(tasks):
        for layer, heads in task.heads.items():
            maps = method._projections.maps[layer]
            found |= {(number, layer, head): maps.matrix_KDD[maps.slot_TH[number, head]].clone() for head in heads}
    return found


@pytest.mark.parametrize("start", ["identity", "random"])
@pytest.mark.parametrize("reentrant", [None, True], ids=["plain", "checkpointed"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_one_step_is_that_of_the_formula(learnt: Path, base: Path, start: str, reentrant: bool | None) -> None:
    student, twin = AutoModelForCausalLM.from_pretrained(base).eval(), exact(base)
    if reentrant is not None:
        student.gradient_checkpointing_enable({"use_reentrant": reentrant})
        student.train()
        student.enable_input_require_grads()
    memory, layout = ReplayMemory.open(learnt / "memory"), Layout(0, "left")
    picked = [memory.samples[number] for number in range(len(memory.samples))]
    tasks = list(memory.tasks)
    settings = SeekrSettings(**{key: value for key, value in BFP.items() if key != "name"}, projection=start)
    method = Seekr(settings, Context(student, layout, None, 3, pytest.fail))
    try:
        method.replay_source(tasks)
        reference = Reference(learnt, maps_of(method, tasks))
        # Of the second batch's samples all are of the first task: the second's matrices do not move there.
        for turn in ((0, 1, 3, 4), (1, 2), (0, 3, 5)):
            batch = ScheduledBatches([MicroBatch(replay=turn)], [], picked, method, layout)[0]["replay"]
            student.zero_grad()
            terms = method.replay_loss(student, batch)
            value = terms["attention"].value
            (value + 0 * terms["replay"].value).backward()
            twin.zero_grad()
            chosen = [picked[number] for number in turn]
            expected = reference.loss(twin, chosen, tasks)
            expected.backward()
            assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
            theirs = dict(twin.named_parameters())
            for name, weight in student.named_parameters():
                wanted = theirs[name].grad
                if wanted is not None and name.startswith("model.layers"):
                    torch.testing.assert_close(weight.grad.double(), wanted, rtol=1e-3, atol=1e-5)
            before = maps_of(method, tasks)
            method.after_step(method.context.model)
            reference.step(twin, chosen, tasks)
            after = maps_of(method, tasks)
            for place, matrix in after.items():
                torch.testing.assert_close(matrix.double(), reference.maps[place].detach(), rtol=1e-4, atol=1e-5)
            moved = {place[0] for place, matrix in after.items() if not torch.equal(matrix, before[place])}
            assert moved == ({0} if turn == (1, 2) else {0, 1})
    finally:
        method.close()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_accumulated_batches_are_one(learnt: Path, base: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(base).eval()
    memory, layout, found = ReplayMemory.open(learnt / "memory"), Layout(0), []
    for turns in ([(0, 1, 2, 3)], [(0, 1), (2, 3)]):
        settings = SeekrSettings(target="hidden", projection="random")
        method = Seekr(settings, Context(copy.deepcopy(student), layout, None, 3, pytest.fail))
        try:
            method.replay_source(memory.tasks)
            # The first is measured before it is trained on; it counts once all the same.
            for turn in turns:
                picked = [memory.samples[number] for number in turn]
                schedule = [MicroBatch(replay=tuple(range(len(turn))))]
                batch = ScheduledBatches(schedule, [], picked, method, layout)[0]["replay"]
                for _ in range(2 if turn == (0, 1) else 1):
                    method.replay_loss(method.context.model, batch)
            method.after_step(method.context.model)
            found.append({str(place): one for place, one in maps_of(method, list(memory.tasks)).items()})
        finally:
            method.close()
    assert_same(*found, atol=1e-6)


def test_mixed_precision_rounds_nothing_of_it() -> None:
    draw = torch.Generator().manual_seed(1)
    out_BLHD, then_PRD = torch.randn((2, 3, 2, 4), generator=draw), torch.randn((2, 3, 4), generator=draw)
    index = RowIndex(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.arange(3).repeat(2, 1))
    target = RowTarget(index, OutputRows(then_PRD), torch.full((2, 3), 0.2))
    maps = {0: HeadMaps(torch.randn((2, 4, 4), generator=draw), torch.tensor([[0, 1]]))}
    found = []
    for enabled in (False, True):
        distil = DistillProjected([], maps, torch.zeros(2, dtype=torch.long))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = distil.compare(SimpleNamespace(layer=0), out_BLHD, target)  # type: ignore[arg-type]
        found.append({"value": value, "slope": distil.slopes()[0][0]})
    assert_same(*found)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_killed_and_resumed_is_never_killed(learnt: Path, base: Path, tmp_path: Path) -> None:
    config = config_for(
        BFP | {"projection": "identity"}, tmp_path, num_train_epochs=2, checkpoint_every=3, learning_rate=0.01
    )
    task = constant_task("yes", "yes")
    learn(base, reverse_task(), tmp_path / "memory", tmp_path / "m1", config)
    memory = [tmp_path / name for name in ("whole", "cut")]
    for place in memory:
        shutil.copytree(tmp_path / "memory", place)
    learn(tmp_path / "m1", task, memory[0], tmp_path / "m2", config)
    with pytest.raises(Killed):
        learn(tmp_path / "m1", task, memory[1], tmp_path / "m3", config, [KillAt(8)])
    assert list((tmp_path / "m3.checkpoints").glob("0*"))
    learn(tmp_path / "m1", task, memory[1], tmp_path / "m3", config, resume=True)
    assert_same(weights(tmp_path / "m2"), weights(tmp_path / "m3"))
    assert weights(tmp_path / "m2").keys() == weights(tmp_path / "m1").keys(), "the matrices were written"


def test_the_plan_counts_them(learnt: Path, base: Path, tmp_path: Path) -> None:
    memory = ReplayMemory.open(learnt / "memory")
    config = config_for(BFP | {"projection": "identity"}, tmp_path)
    plan = make_plan(read_shape(base), config, Workload([12, 12, 12], [1.0] * 3, 16, 4))
    heads = sum(len(chosen) for task in memory.tasks for chosen in task.heads.values())
    assert plan.overhead.device == 3 * 4 * heads * 8 * 8  # matrices, momentum, gradient of heads of 8 components
    alone = make_plan(read_shape(base), config_for(BFP, tmp_path), Workload([12, 12, 12], [1.0] * 3, 16, 4))
    assert alone.overhead.device == 0


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.projection: would be ignored.*target: hidden"):
        config_for(BFP | {"target": "relations", "projection": "identity"}, tmp_path)
    with pytest.raises(ConfigError, match=r"method\.projection_rate: would be ignored"):
        config_for(BFP | {"projection_rate": 0.2}, tmp_path)

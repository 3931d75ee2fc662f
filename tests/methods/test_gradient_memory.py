"""A-GEM and GEM: one step of plain descent against the projection formed directly, in float64, from the memory.

The expected step of A-GEM is eq. 11 written down once more. That of GEM is found without a solver: for each set of
tasks whose constraints could bind, the factors that make exactly these inner products zero; one set satisfies all
constraints with no negative factor, which is what makes a solution. The official codes (facebookresearch/agem,
facebookresearch/GradientEpisodicMemory) were read for when the projection applies (any product below zero), the sign of
the reference, and where the margin enters (``bound``); none of their numbers is used.
"""

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import Twin, assert_near, moved, plain_steps, token_loss, words_of
from tinylm import constant_task, reverse_task, teach
from torch import Tensor
from transformers import TrainerCallback

from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.common.gradients import mean_gradient
from seekr_cl.methods.gem import dual_solution
from seekr_cl.tasks import Encoded, Example, Task
from seekr_cl.training import learn
from seekr_cl.training.checkpoint import Checkpoints

KEPT: dict[str, Any] = {"replay": {"samples": 3}}
OLD = [constant_task("yes", "yes", 4), reverse_task("old", 4)]
NEW = Task("no", [Example(example.prompt, "no") for task in OLD for example in task.train[:2]])
"""Old prompts with another answer: in the way of both."""


@pytest.fixture(scope="module")
def old(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks learned long enough for a third to get in their way."""
    folder = tmp_path_factory.mktemp("old")
    learning = {"learning_rate": 0.01, "num_train_epochs": 20, **KEPT}
    teach(base, folder, OLD, plain_steps("gem", folder, **learning, optim="adamw_torch"))
    return folder


def one_step(old: Path, folder: Path, task: Task, method: dict[str, Any], **settings: Any) -> Tensor:
    shutil.copytree(old / "memory", folder / "memory")
    config = plain_steps(method, folder, **(KEPT | settings))
    learn(old / "m2", task, folder / "memory", folder / "m3", config)
    return moved(old / "m2", folder / "m3")


def gradients(old: Path, task: Task) -> tuple[Tensor, list[Tensor]]:
    """Of the new task's batch and of each old task's kept samples."""
    twin, memory = Twin(old / "m2"), ReplayMemory.open(old / "memory")
    return twin.loss_gradient(words_of(task)), [twin.loss_gradient(words_of(one)) for one in memory.tasks]


@pytest.mark.parametrize("norm", [0.0, 0.1])
def test_agem_takes_out_what_goes_against_the_mean_of_all_old_samples(old: Path, tmp_path: Path, norm: float) -> None:
    twin, memory = Twin(old / "m2"), ReplayMemory.open(old / "memory")
    everything = [word for task in memory.tasks for word in words_of(task)]
    new, reference = gradients(old, NEW)[0], twin.loss_gradient(everything)
    assert new @ reference < 0
    expected = new - (new @ reference) / (reference @ reference) * reference
    if norm:
        # It is projected first and clipped afterwards.
        expected = expected * norm / expected.norm()
    assert_near(one_step(old, tmp_path, NEW, {"name": "agem"}, max_grad_norm=norm), expected)


@pytest.mark.parametrize("name", ["agem", "gem"])
def test_a_step_that_harms_nothing_is_a_plain_one(old: Path, tmp_path: Path, name: str) -> None:
    # What an old task's samples ask for cannot be against them.
    memory = ReplayMemory.open(old / "memory")
    again = Task("again", [example for task in OLD for example in task.train])
    twin = Twin(old / "m2")
    kept = [twin.loss_gradient(words_of(task)) for task in memory.tasks]
    new = twin.loss_gradient(words_of(again))
    assert min(float(new @ one) for one in kept) > 0
    found = one_step(old, tmp_path, again, {"name": name}, per_device_train_batch_size=8)
    assert_near(found, new)


def by_cases(new: Tensor, old: list[Tensor], least: float) -> Tensor:
    """Factors v >= least with which g + sum v_k g_k has the smallest length."""
    rows = torch.stack(old)
    for count in range(len(old) + 1):
        for free in combinations(range(len(old)), count):
            factors = torch.full((len(old),), least, dtype=torch.float64)
            if free:
                rest = new + sum(least * old[k] for k in range(len(old)) if k not in free)
                part = rows[list(free)]
                factors[list(free)] = torch.linalg.solve(part @ part.T, -part @ rest)
            products = rows @ (new + factors @ rows)
            inside = all(factors[k] >= least for k in free)
            if inside and all(products[k] >= -1e-9 for k in range(len(old)) if k not in free):
                return factors
    raise AssertionError("no case is a solution")


@pytest.mark.parametrize(("margin", "form"), [(0.0, "added"), (0.5, "added"), (0.5, "bound")])
def test_gem_makes_the_smallest_change_that_harms_no_task(old: Path, tmp_path: Path, margin: float, form: str) -> None:
    new, references = gradients(old, NEW)
    assert min(float(new @ one) for one in references) < 0
    if form == "bound":
        factors = by_cases(new, references, margin)
    else:
        factors = by_cases(new, references, 0.0) + margin
    found = one_step(old, tmp_path, NEW, {"name": "gem", "margin": margin, "margin_form": form})
    assert_near(found, new + factors @ torch.stack(references))
    if not margin:
        assert min(float(found @ one) / float(one.norm()) for one in references) > -1e-3


def test_one_violated_task_is_enough_for_gem_whichever_it_is(old: Path, tmp_path: Path) -> None:
    candidates = [Task("late", [Example(one.prompt, text) for one in OLD[1].train]) for text in ("no", "y", "e", "ye")]
    found = [(task, *gradients(old, task)) for task in candidates]
    task, new, references = next(one for one in found if one[1] @ one[2][0] > 0 > one[1] @ one[2][1])
    expected = new + by_cases(new, references, 0.0) @ torch.stack(references)
    assert float((expected - new).norm()) > 0.01 * float(new.norm())
    assert_near(one_step(old, tmp_path, task, {"name": "gem", "margin": 0.0}), expected)


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_the_dual_is_solved_for_every_set_of_tasks_that_binds(least: float) -> None:
    seen = set()
    for seed in range(40):
        vectors = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = dual_solution(vectors @ vectors.T, least, "bound")
        expected = by_cases(vectors[-1], list(vectors[:-1]), least)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        seen.add(int((expected > least).sum()))
    assert {0, 1, 2} <= seen


def test_equal_old_gradients_are_no_trouble_to_the_dual() -> None:
    # Two tasks with the same samples: the program has many solutions and all give the same step.
    old, new = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-2.0, 1.0, 0.0])
    vectors = torch.stack([old, old, new]).double()
    factors = dual_solution(vectors @ vectors.T, 0.0, "added")
    torch.testing.assert_close(new.double() + factors @ vectors[:2], torch.tensor([0.0, 1.0, 0.0]).double())


def test_gradients_of_parts_add_up_to_that_of_all(base: Path) -> None:
    """Answers of different lengths in batches of two: a mean over tokens, not over batches."""
    twin, words = Twin(base), words_of(reverse_task("uneven", 5))
    assert len({len(ids) - start for ids, start in words}) > 1
    context = Context(twin.model, Layout(0), None, 0, print)
    found = mean_gradient(context, [Encoded(ids, start, 0) for ids, start in words], 2)
    assert_near(twin.flat(found), twin.gradient(lambda one: token_loss(one.answers(words))), 1e-5)
    assert all(weight.grad is None for weight in twin.model.parameters())


def test_a_memory_without_samples_is_named(base: Path, tmp_path: Path) -> None:
    config = plain_steps("agem", tmp_path, replay={"ratio": 0})
    teach(base, tmp_path, OLD[:1], config)
    with pytest.warns(UserWarning, match="no samples, so agem is plain fine-tuning"):
        learn(tmp_path / "m1", NEW, tmp_path / "memory", tmp_path / "m2", config)


class StoppedHereError(Exception):
    """No error of the operating system, which would become one of the library's."""


class Stop(TrainerCallback):
    """An error in the middle of a task, right after a checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise StoppedHereError


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_a_method_sees_each_step_once(base: Path, tmp_path: Path, norm: float) -> None:
    """Whether gradients are clipped or not, and however many batches they come from; A-GEM counts for its draws."""
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "checkpoint_every": 1}
    config = plain_steps("agem", tmp_path, num_train_epochs=2, max_grad_norm=norm, **KEPT, **small)
    with pytest.raises(StoppedHereError):
        learn(base, NEW, tmp_path / "memory", tmp_path / "m1", config, [Stop()])
    assert Checkpoints(tmp_path / "m1.checkpoints").newest().state["method"] == {"step": 2}

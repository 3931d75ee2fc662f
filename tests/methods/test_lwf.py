"""LwF: two steps of plain descent against the paper's loss written down once more, in float64.

At the first step the model is its own teacher, so eq. 2's gradient is zero there and the second step is what tells. The
official code (lizhitwo/LearningWithoutForgetting, MATLAB) was not run; T = 2 and lambda_o = 1 are the paper's.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import RATE, Twin, assert_near, plain_steps, token_loss, words_of
from tinylm import differs, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.methods.lwf import LwF

TASK = reverse_task("words", 4)


def expected(base: Path, strength: float, temperature: float) -> tuple[Twin, Tensor]:
    """The weights after the first step, and the gradient there."""
    twin, teacher, words = Twin(base), Twin(base), words_of(TASK)
    twin.step(-RATE * twin.loss_gradient(words))

    def loss(model: Twin) -> Tensor:
        old, new = teacher.answers(words), model.answers(words)
        # Eq. 3 and 4: probabilities to the power 1 / T, made to add up to one again; cross entropy of the two.
        soft = [[(part.softmax(-1) ** (1 / temperature)) for part, _ in side] for side in (old, new)]
        target, found = (torch.cat([one / one.sum(-1, keepdim=True) for one in side]) for side in soft)
        return token_loss(new) - strength * (target.detach() * found.log()).sum(-1).mean()

    return twin, twin.gradient(loss)


@pytest.mark.parametrize("settings", [{}, {"strength": 4.0, "temperature": 0.7}])
def test_the_second_step_is_the_papers(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    twin, gradient = expected(base, settings.get("strength", 1.0), settings.get("temperature", 2.0))
    config = plain_steps({"name": "lwf", **settings}, tmp_path, num_train_epochs=2)
    (done,) = teach(base, tmp_path, [TASK], config)
    found = (twin.vector() - twin.flat(weights(tmp_path / "m1"))) / RATE
    assert_near(found, gradient)
    losses = [line["loss_old_outputs"] for line in done.log if "loss_old_outputs" in line]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] > 1e-4


def test_the_teacher_shares_what_is_not_trained(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.requires_grad_(False)
    method = LwF(get_method("lwf").Settings(), Context(model, Layout(0), None, 0, print))
    teacher = dict(method._teacher.named_parameters())
    for name, weight in model.named_parameters():
        assert (teacher[name] is weight) == name.startswith("model."), name
        assert not teacher[name].requires_grad
    assert model.lm_head.weight.requires_grad
    method.close()
    assert method._teacher is None


@pytest.mark.parametrize(("name", "term", "tasks"), [("lwf", "old_outputs", 1), ("icarl", "distil_new", 2)])
def test_the_teacher_computes_in_the_students_precision(
    base: Path, tmp_path: Path, name: str, term: str, tasks: int
) -> None:
    # A teacher in float32 beside a student in bfloat16 would see a difference before anything has moved.
    keeps = {"replay": {"ratio": 0.25}} if tasks > 1 else {}
    config = plain_steps(name, tmp_path, bf16=True, **keeps)
    *_, done = teach(base, tmp_path, [reverse_task("more", 4), TASK][-tasks:], config)
    assert done.log[0][f"loss_{term}"] == 0
    assert differs(weights(base), weights(tmp_path / "m1"))

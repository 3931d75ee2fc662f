"""LwF: two steps of plain descent against the paper's loss written down once more, in float64.

At the first step the model is its own teacher, so eq. 2's gradient is zero there and the second step is what tells. The
official code (lizhitwo/LearningWithoutForgetting, MATLAB) was not run; T = 2 and lambda_o = 1 are the paper's.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import RATE, Twin, assert_near, plain_steps, token_loss, words_of
from tinylm import config_for, differs, logits_in_chunks, reverse_task, teach, weights
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.methods.answers import AnswerHead
from seekr_cl.methods.base import label_term
from seekr_cl.methods.common.former_model import label_and_divergence_terms
from seekr_cl.methods.lwf import LwF
from seekr_cl.training import learn

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


def test_a_pass_in_chunks_leaves_nothing_on_the_model(base: Path) -> None:
    """What was held of it hangs on its graph, which cannot be copied."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with logits_in_chunks(2):
        label_term(model, batch)
        teacher = copy.deepcopy(model)
        label, apart = label_and_divergence_terms(None, model, batch, teacher, 1.0)
    copy.deepcopy((model, teacher))
    assert torch.isfinite(label.value + apart.value)
    heads = [AnswerHead.of(one) for one in (model, teacher)]
    assert all(head.held is None and head.most == 2 for head in heads)
    AnswerHead.take_off(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert AnswerHead.of(teacher) is heads[1]


def test_a_model_that_was_given_comes_back_without_hooks(base: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    learn(model, TASK, tmp_path / "memory", tmp_path / "m", config_for("lwf", tmp_path), processing_class=tokenizer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


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

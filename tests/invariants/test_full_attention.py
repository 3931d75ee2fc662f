"""With all heads, all queries and the whole vocabulary SEEKR is plain distillation of full attention and logits.

The other side is computed here, from transformers' own eager attention maps and with autograd alone.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import HEADS, LAYERS, config_for, reverse_task, rows_of, teach
from torch import Tensor
from transformers import AutoModelForCausalLM

from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seekr.settings import SeekrSettings
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.schedule import MicroBatch

ALL: dict[str, Any] = {"heads": "all", "query_budget": None, "logits_top_k": None}


def load(folder: Path, kernel: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel).eval()


def moved(model: Any) -> Any:
    """The same model some way off, as a student would be after a few steps."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def taught(request: pytest.FixtureRequest, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = config_for({"name": "seekr", **ALL}, folder, replay={"samples": 5})
    teach(bases[request.param], folder, [reverse_task()], config)
    return folder


def test_stored_rows_are_the_eager_maps(taught: Path) -> None:
    teacher = load(taught / "m1", "eager")
    for task, sample in ReplayMemory.open(taught / "memory").samples:
        assert task.heads == {layer: list(range(HEADS)) for layer in range(LAYERS)}
        with torch.no_grad():
            maps = teacher(input_ids=sample.ids_L[None], output_attentions=True).attentions
        assert torch.equal(sample.attention.query_R, torch.arange(len(sample.ids_L)))
        for layer in range(LAYERS):
            torch.testing.assert_close(rows_of(task, sample)[layer], maps[layer][0], rtol=0, atol=1e-6)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of every row; a future key is zero on both sides, which the clamp keeps from becoming 0/0 in the gradient."""
    tiny = torch.finfo(student.dtype).tiny
    return (torch.xlogy(teacher, teacher) - teacher * student.clamp_min(tiny).log()).sum(-1)


def by_hand(student: Any, teacher: Any, samples: list[Any], reduction: str) -> Tensor:
    """The attention term from full maps, one sample after another without padding."""
    total = torch.zeros(())
    for sample in samples:
        with torch.no_grad():
            wanted = teacher(input_ids=sample.ids_L[None], output_attentions=True).attentions
        given = student(input_ids=sample.ids_L[None], output_attentions=True).attentions
        rows_NHL = torch.stack([divergence(T[0], S[0]) for T, S in zip(wanted, given)])
        total = total + (rows_NHL.sum() if reduction == "sum" else rows_NHL.mean())
    return total / len(samples)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("reduction", ["sample_mean", "layer_mean", "sum"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_attention_term_is_the_full_divergence(taught: Path, side: str, reduction: str, kernel: str) -> None:
    memory = ReplayMemory.open(taught / "memory")
    student = moved(load(taught / "m1", kernel))
    reference = load(taught / "m1", "eager")
    reference.load_state_dict(copy.deepcopy(student.state_dict()))
    layout = Layout(pad_id=0, side=side, multiple=4)
    context = Context(student, layout, None, seed=0, warn=lambda _: None)
    settings = SeekrSettings(**ALL, lambda2=1.0, attention_reduction=reduction)
    method = Seekr(settings, context)
    try:
        everything = MicroBatch(replay=tuple(range(5)))
        batch = ScheduledBatches([everything], [], memory.samples, method, layout)[0]["replay"]
        assert (batch["attention_mask"] == 0).any(), "samples of one length would not test the padding"
        terms = method.replay_loss(student, batch)
        terms["attention"].value.backward(retain_graph=True)
        # The leaf of the attention term injects where the graph of the logits passes; zero times these drives it.
        student.zero_grad()
        (terms["attention"].value + 0 * terms["logits"].value).backward()
    finally:
        method.close()
    expected = by_hand(reference, load(taught / "m1", "eager"), [sample for _, sample in memory.samples], reduction)
    expected.backward()
    assert float(expected.detach()) > 1e-4
    torch.testing.assert_close(terms["attention"].value, expected, rtol=2e-5, atol=0)
    largest = max(float(p.grad.abs().max()) for p in reference.parameters() if p.grad is not None)
    for (name, one), other in zip(student.named_parameters(), reference.parameters()):
        mine = torch.zeros_like(one) if one.grad is None else one.grad
        theirs = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * largest, msg=lambda text, n=name: f"{n}: {text}")


def test_the_logit_term_is_the_divergence_of_the_answers(taught: Path) -> None:
    memory = ReplayMemory.open(taught / "memory")
    teacher, student = load(taught / "m1", "sdpa"), moved(load(taught / "m1", "sdpa"))
    layout = Layout(pad_id=0)
    method = Seekr(SeekrSettings(**ALL), Context(student, layout, None, seed=0, warn=lambda _: None))
    try:
        batch = ScheduledBatches([MicroBatch(replay=(0, 1, 2, 3, 4))], [], memory.samples, method, layout)[0]["replay"]
        value = method.replay_loss(student, batch)["logits"].value
    finally:
        method.close()
    rows = []
    for _, sample in memory.samples:
        answer = slice(sample.completion_start - 1, len(sample.ids_L) - 1)
        with torch.no_grad():
            p, q = (m(input_ids=sample.ids_L[None]).logits[0, answer].softmax(-1) for m in (teacher, student))
        rows.append(divergence(p, q))
    torch.testing.assert_close(value, torch.cat(rows).mean(), rtol=1e-4, atol=0)

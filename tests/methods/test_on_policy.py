"""Distillation on the model's own answers: divergences by hand, who teaches whom, what the teacher is shown."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import (
    assert_same,
    char_tokenizer,
    config_for,
    constant_task,
    differs,
    reverse_task,
    save_base,
    teach,
    weights,
)
from transformers import AutoModelForCausalLM

from seekr_cl.errors import ConfigError
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.common.gradients import example_batch
from seekr_cl.methods.common.on_policy import divergence
from seekr_cl.methods.sdft import SDFT, SDFTSettings
from seekr_cl.tasks import Encoded
from seekr_cl.training import learn

LORA = {"peft": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def test_the_divergences_are_those_of_the_book() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(3, 7) * 2, torch.randn(3, 7) * 2
    p, q = teacher.softmax(-1), student.softmax(-1)
    forward = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(divergence(teacher, student, "forward"), forward)
    torch.testing.assert_close(divergence(teacher, student, "reverse"), (q * (q / p).log()).sum(-1))
    # The two likeliest and all others as one; with all but one token by themselves nothing is lost.
    for row in range(3):
        best = p[row].argsort(descending=True)[:2]
        parts = [*((p[row, k], q[row, k]) for k in best), (1 - p[row, best].sum(), 1 - q[row, best].sum())]
        expected = sum(one * (one / other).log() for one, other in parts)
        torch.testing.assert_close(divergence(teacher, student, "forward", 2)[row], expected)
    torch.testing.assert_close(divergence(teacher, student, "forward", 6), forward)
    assert bool((divergence(teacher, student, "forward", 2) <= forward + 1e-6).all())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_has_not_moved_is_its_own_teacher(base: Path, tmp_path: Path) -> None:
    """At a rate of 0 the model before the task is the model, whatever it answers."""
    tasks = [constant_task("yes", "yes", 8), reverse_task(count=8)]
    for name, rate in (("still", 0.0), ("moved", 0.02)):
        folder = tmp_path / name
        folder.mkdir()
        config = config_for({"name": "onpolicy_replay", "loss": "kl", "temperature": 1.0}, folder, learning_rate=rate)
        log = teach(base, folder, tasks, config)[1].log
        losses = [line["loss_replay"] for line in log if "loss_replay" in line]
        assert losses
        assert (max(map(abs, losses)) < 1e-6) is (rate == 0.0)
    with pytest.raises(ConfigError, match=r"method\.keep: would be ignored; set method\.loss: labels"):
        config_for({"name": "onpolicy_replay", "loss": "kl", "keep": 1.0}, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_is_off_is_the_frozen_one_of_the_first_task(base: Path, tmp_path: Path) -> None:
    found = []
    for teacher in ("frozen", "off"):
        config = config_for({"name": "sdft", "teacher": teacher}, tmp_path, **LORA)
        learn(base, constant_task("yes", "yes", 8), tmp_path / f"{teacher}-memory", tmp_path / teacher, config)
        found.append(weights(tmp_path / teacher))
    assert_same(*found)
    assert any(tensor.any() for name, tensor in found[0].items() if "lora_B" in name)
    with pytest.raises(ConfigError, match=r"method\.teacher: off needs an adapter"):
        learn(
            base,
            reverse_task(count=4),
            tmp_path / "m",
            tmp_path / "n",
            config_for({"name": "sdft", "teacher": "off"}, tmp_path),
        )


def test_the_teacher_is_shown_the_answer(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default as an earlier turn; the end of text that the answer was learned with is part of it."""
    seen: list[tuple[str, str]] = []
    from seekr_cl.methods import sdft

    def watched(context: Any, model: Any, ask: Any, student: Any, teacher: Any, *rest: Any) -> Any:
        for one, other in zip(student, teacher, strict=True):
            new = one.input_ids[one.completion_start :]
            assert other.input_ids[other.completion_start :] == new
            starts = [each.input_ids[: each.completion_start] for each in (one, other)]
            seen.append(tuple(tokenizer.decode(ids) for ids in starts))  # type: ignore[arg-type]
        return real(context, model, ask, student, teacher, *rest)

    tokenizer, real = char_tokenizer(), sdft.distil
    monkeypatch.setattr(sdft, "distil", watched)
    learn(base, constant_task("yes", "yes", 4), tmp_path / "memory", tmp_path / "m", config_for("sdft", tmp_path))
    assert len(seen) == 4
    for prompt, shown in seen:
        assert shown.replace("<unk>", "\n") == f"{prompt}yes</s>\n{prompt}"


def test_the_average_follows(base: Path, tmp_path: Path) -> None:
    """A teacher that goes all the way in each step is the model of the step before."""
    made = {}
    for name, settings in (("frozen", {}), ("ema", {"teacher": "ema", "ema_rate": 1.0})):
        config = config_for({"name": "sdft", **settings}, tmp_path, learning_rate=0.01, num_train_epochs=3)
        made[name] = learn(base, constant_task("yes", "yes", 8), tmp_path / f"{name}m", tmp_path / name, config)
    assert differs(weights(tmp_path / "frozen"), weights(tmp_path / "ema"))


def test_what_cannot_be_is_refused() -> None:
    for demonstration in ("{prompt}", "{prompt}{answer}", "question"):
        with pytest.raises(ConfigError, match=r"method\.demonstration: must hold"):
            SDFTSettings(demonstration=demonstration)
    with pytest.raises(ConfigError, match=r"method\.ema_rate: would be ignored"):
        SDFTSettings(ema_rate=0.5)


def test_an_example_without_a_prompt_is_not_answered(base: Path) -> None:
    """Some tokenizers begin a text with nothing."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    examples = [Encoded([5, 6, 2], 0, 0)]
    context = Context(model, Layout(0), None, 0, print, tokenizer=char_tokenizer(), examples=examples)
    batch = example_batch(context, examples) | {"example_B": torch.tensor([0])}
    term = SDFT(SDFTSettings(), context).new_task_loss(model, batch)["task"]
    assert (float(term.value), term.count) == (0.0, 0)

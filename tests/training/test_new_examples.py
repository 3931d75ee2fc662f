"""``new_examples``: what a method makes of the task's examples is what is trained on, also after a stop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tinylm import char_tokenizer, config_for, constant_task, differs, reverse_task, save_base, weights
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, TrainerCallback

from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import METHODS, LossTerm, Method, Paper, register_method
from seekr_cl.methods.base import forward
from seekr_cl.methods.replay import Replay
from seekr_cl.tasks import Encoded, Encoder, Example, Task
from seekr_cl.training import learn

PAPER = Paper("None", "Nobody, 2026", "https://example.org")
TASK = constant_task("yes", "yes", 8)
SETTINGS: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 0.01, "checkpoint_every": 1}


def encoded(task: Task) -> list[Encoded]:
    encoder = Encoder(char_tokenizer(), 64)
    return [encoder.encode(example) for example in task.train]


class Rewriting(Replay):
    """Answers "no" to all, and leaves the first two examples out."""

    name = "rewriting"
    paper = PAPER
    asked: ClassVar[list[int]] = []

    def new_examples(self, examples: Sequence[Encoded]) -> Sequence[Encoded]:
        """Other answers, by the context's own tokenizer."""
        self.asked.append(len(examples))
        answer = self.context.tokenizer("no", add_special_tokens=False)["input_ids"] + [2]
        return [
            Encoded(one.input_ids[: one.completion_start] + answer, one.completion_start, 0) for one in examples[2:]
        ]


class Weighing(Method):
    """Weighs every example by its place, as it found them."""

    name = "weighing"
    paper = PAPER

    def new_examples(self, examples: Sequence[Encoded]) -> Sequence[Encoded]:
        """The same ones, looked at."""
        self.weight_N = torch.arange(len(examples), dtype=torch.float32)
        return examples

    def new_task_loss(self, model: Any, batch: Any) -> dict[str, LossTerm]:
        """Mean over the batch of each example's weighted loss."""
        labels_BL = batch["labels"][:, 1:]
        loss_BL = cross_entropy(forward(model, batch)[:, :-1].mT, labels_BL, reduction="none")
        loss_B = loss_BL.sum(1) / (labels_BL != -100).sum(1)
        return {"task": LossTerm((self.weight_N[batch["example_B"]] * loss_B).mean())}


class Spoiling(Method):
    """Gives back what cannot be trained on."""

    name = "spoiling"
    paper = PAPER
    given: ClassVar[Any] = None

    def new_examples(self, examples: Sequence[Encoded]) -> Sequence[Encoded]:
        """What the test says."""
        return Spoiling.given(examples)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    for kind in (Rewriting, Weighing, Spoiling):
        register_method(kind)
    yield
    for kind in (Rewriting, Weighing, Spoiling):
        METHODS.pop(kind.name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def test_what_is_rewritten_is_what_is_learned(base: Path, tmp_path: Path) -> None:
    """The same weights as plain training on data that says so; the memory keeps the task's own answers."""
    Rewriting.asked.clear()
    learn(base, TASK, tmp_path / "memory", tmp_path / "m", config_for("rewriting", tmp_path, **SETTINGS))
    assert Rewriting.asked == [8]
    rows = [Example(one.prompt, "no") for one in TASK.train[2:]]
    plain = config_for("seqft", tmp_path, **SETTINGS)
    learn(base, Task("yes", rows), tmp_path / "other", tmp_path / "plain", plain)
    assert not differs(weights(tmp_path / "m"), weights(tmp_path / "plain"))
    learn(base, TASK, tmp_path / "third", tmp_path / "untouched", plain)
    assert differs(weights(tmp_path / "m"), weights(tmp_path / "untouched"))
    kept = [sample for _, sample in ReplayMemory.open(tmp_path / "memory").samples]
    assert len(kept) == 2
    assert {sample.completion for sample in kept} == {"yes"}


class StopError(Exception):
    """No error of the system, which would become the library's."""


class Stop(TrainerCallback):
    """An error in the middle of a task, right after a checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise StopError


def test_a_task_that_goes_on_learns_the_same(base: Path, tmp_path: Path) -> None:
    config = config_for("rewriting", tmp_path, **SETTINGS)
    learn(base, TASK, tmp_path / "whole" / "memory", tmp_path / "whole" / "m", config)
    with pytest.raises(StopError):
        learn(base, TASK, tmp_path / "memory", tmp_path / "m", config, [Stop()])
    learn(base, TASK, tmp_path / "memory", tmp_path / "m", config, resume=True)
    assert not differs(weights(tmp_path / "whole" / "m"), weights(tmp_path / "m"))


def test_a_batch_says_which_examples_it_has(base: Path, tmp_path: Path) -> None:
    """The loss of one step over all examples, with the weights that were found for each, worked out one by one."""
    task = reverse_task(count=5)
    config = config_for("weighing", tmp_path, per_device_train_batch_size=5, learning_rate=0.01)
    done = learn(base, task, tmp_path / "memory", tmp_path / "m", config)
    model, expected = AutoModelForCausalLM.from_pretrained(base), []
    for weight, one in enumerate(encoded(task)):
        ids = torch.tensor([one.input_ids])
        labels = ids.clone()
        labels[:, : one.completion_start] = -100
        expected.append(weight * float(model(input_ids=ids, labels=labels).loss))
    assert done.log[0]["loss_task"] == pytest.approx(sum(expected) / 5, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda examples: [], "leaves nothing to train on"),
        (lambda examples: ["yes"], "item 0 is a str"),
        (lambda examples: [*examples, replace(examples[0], learnt=())], "item 8 has no token to learn"),
        (lambda examples: [replace(examples[0], input_ids=[5] * 99)], "item 0 has 99 tokens; cut it to the max_length"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(base: Path, tmp_path: Path, given: Any, said: str) -> None:
    Spoiling.given = staticmethod(given)
    with pytest.raises(ConfigError, match=f"method spoiling: new_examples of task 'yes'.*{said}"):
        learn(base, TASK, tmp_path / "memory", tmp_path / "m", config_for("spoiling", tmp_path))
    assert not (tmp_path / "m").exists()


def test_several_tasks_are_asked_one_by_one(base: Path, tmp_path: Path) -> None:
    class All(Rewriting):
        """Both tasks at once."""

        name = "all_rewritten"
        memory = "none"
        multi_task = True

    Rewriting.asked.clear()
    config = replace(config_for("seqft", tmp_path, **SETTINGS), method=All)
    learn(base, [TASK, reverse_task(count=5)], tmp_path / "memory", tmp_path / "m", config)
    assert Rewriting.asked == [8, 5]

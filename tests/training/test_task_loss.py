"""Weights on the new task's loss: the values, every method that has a loss of its own, and what cannot be combined."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tinylm import config_for, constant_task, differs, reverse_task, save_base, teach, weights
from transformers import LlamaConfig, TrainerCallback, TrainerState

from seekr_cl.errors import ConfigError
from seekr_cl.methods import METHODS, Context, Layout, Method, Paper
from seekr_cl.methods.base import LossTerm, forward, task_term
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.methods.task_loss import KINDS, TaskLoss, read_task_loss
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.replay.schedule import MicroBatch
from seekr_cl.training import learn
from seekr_cl.training.task_weights import RequireUse


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def tasks() -> list[Any]:
    return [constant_task("yes", "yes", 8), reverse_task(count=8)]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.tensor([[-100, -100, 4, 2], [-100, 3, 1, -100]])
    return torch.randn(2, 4, 6) * 2, labels, torch.tensor([1, 0])


class Says(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.config, self.logits, self.head = LlamaConfig(vocab_size=6), logits, torch.nn.Identity()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.logits))


def term(logits: torch.Tensor, settings: Any, of_example: list[torch.Tensor] | None = None) -> torch.Tensor:
    _, labels, example = batch()
    model: Any = Says(logits)
    context = Context(model, Layout(0), None, 0, print, task_loss=TaskLoss(settings, of_example or []))
    given = {"input_ids": labels, "attention_mask": torch.ones_like(labels), "labels": labels, "example_B": example}
    return task_term(context, model, given).value


def loss_of(settings: Any, of_example: list[torch.Tensor] | None = None) -> float:
    return float(term(batch()[0], settings, of_example))


def test_a_weight_is_what_its_paper_says() -> None:
    logits, _, _ = batch()
    logp = logits.log_softmax(-1)
    spots = [(0, 1, 4), (0, 2, 2), (1, 0, 3), (1, 1, 1)]
    loss = [-float(logp[row, place, label]) for row, place, label in spots]

    def mean(weight: list[float]) -> float:
        return sum(w * one for w, one in zip(weight, loss, strict=True)) / 4

    def entropy(row: int, place: int, top: int) -> float:
        probs = sorted(logits[row, place].softmax(-1).tolist(), reverse=True)[:top]
        return -sum(p / sum(probs) * math.log(p / sum(probs)) for p in probs)

    median = sorted(loss)[1]
    expected = {
        "dft": mean([math.exp(-one) for one in loss]),
        "eaft": mean([entropy(row, place, 20) / 3 for row, place, _ in spots]),
        "talr": mean([math.exp(-one / median) for one in loss]),
    }
    for name, value in expected.items():
        assert loss_of(read_task_loss(name)) == pytest.approx(value, rel=1e-5), name
    sharp = read_task_loss({"name": "eaft", "alpha": 2, "top_k": 3})
    assert loss_of(sharp) == pytest.approx(mean([(entropy(r, p, 3) / 3) ** 2 for r, p, _ in spots]), rel=1e-5)
    assert loss_of(read_task_loss({"name": "talr", "tau": 2})) == pytest.approx(
        mean([math.exp(-one / 2) for one in loss]), rel=1e-5
    )
    before = [torch.tensor([0.2, 3.0]), torch.tensor([0.1, 0.3])]
    kept = read_task_loss({"name": "stm", "threshold": math.exp(0.25)}).of_examples(before)
    assert [one.tolist() for one in kept] == [[2.0, 0.0], [2.0, 0.0]]
    # The batch's first row is example 1.
    assert loss_of(read_task_loss("stm"), kept) == pytest.approx(mean([2, 0, 2, 0]), rel=1e-5)
    flow = read_task_loss("flow").of_examples(before)
    tau = 0.2  # the lower of the two means, as torch's median
    easy, hard = math.exp(-0.2 / tau), math.exp(-1.6 / tau)
    assert loss_of(read_task_loss("flow"), flow) == pytest.approx(mean([easy, easy, hard, hard]), rel=1e-5)


def test_a_weight_gets_no_gradient() -> None:
    logits, _, _ = batch()
    logits.requires_grad_()
    term(logits, read_task_loss("dft")).backward()
    got, logits.grad = logits.grad, None
    logp = logits.log_softmax(-1)
    own = [logp[r, p, label] for r, p, label in [(0, 1, 4), (0, 2, 2), (1, 0, 3), (1, 1, 1)]]
    (-sum(one.exp().detach() * one for one in own) / 4).backward()
    torch.testing.assert_close(got, logits.grad)


@pytest.mark.parametrize("method", ["seqft", "lwf", "icarl", "derpp_mse", "l2p"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_reaches_every_loss_on_new_examples(base: Path, tmp_path: Path, method: str) -> None:
    """These have a ``new_task_loss`` of their own; all others ask the base class."""
    found = []
    for number, chosen in enumerate((None, "talr")):
        folder = tmp_path / str(number)
        folder.mkdir()
        teach(base, folder, tasks(), config_for(method, folder, learning_rate=0.01, task_loss=chosen))
        found.append([weights(folder / name) for name in ("m1", "m2")])
    assert all(differs(one, other) for one, other in zip(*found, strict=True))


class KilledError(Exception):
    pass


class Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KilledError


@pytest.mark.parametrize("name", ["stm", "flow"])
def test_what_was_read_before_the_task_is_the_same_when_it_goes_on(base: Path, tmp_path: Path, name: str) -> None:
    settings = {"task_loss": {"name": name, "threshold": 40} if name == "stm" else name, "checkpoint_every": 1}
    config = config_for("seqft", tmp_path, learning_rate=0.01, num_train_epochs=2, **settings)
    task = reverse_task(count=8)
    learn(base, task, tmp_path / "a", tmp_path / "whole", config)
    with pytest.raises(KilledError):
        learn(base, task, tmp_path / "b", tmp_path / "cut", config, [Stop()])
    learn(base, task, tmp_path / "b", tmp_path / "cut", config, resume=True)
    assert not differs(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    plain = config_for("seqft", tmp_path, learning_rate=0.01, num_train_epochs=2)
    learn(base, task, tmp_path / "c", tmp_path / "plain", plain)
    assert differs(weights(tmp_path / "whole"), weights(tmp_path / "plain"))


class OwnLoss(Method):
    """A method whose loss on new examples is its own."""

    name = "own_loss"
    paper = Paper("None", "Nobody, 2026", "https://example.org")

    def new_task_loss(self, model: Any, batch: Any) -> dict[str, LossTerm]:
        return {"task": LossTerm(causal_lm_loss(forward(model, batch), batch["labels"]))}


def test_what_cannot_be_combined_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task_loss: 'dftt' is unknown; did you mean 'dft'\?"):
        config_for("seqft", tmp_path, task_loss="dftt")
    with pytest.raises(ConfigError, match="unknown key 'tau'"):
        config_for("seqft", tmp_path, task_loss={"name": "dft", "tau": 2})
    for name, key, value in [
        ("eaft", "alpha", 0),
        ("eaft", "top_k", 1),
        ("talr", "tau", -1),
        ("stm", "threshold", 1),
        ("flow", "tau", 0),
    ]:
        with pytest.raises(ConfigError, match=rf"task_loss\.{key}"):
            config_for("seqft", tmp_path, task_loss={"name": name, key: value})
    for method in ("l2p", "progressive_prompts"):
        with pytest.raises(ConfigError, match=f"stm asks the model before the task, and method {method}"):
            config_for(method, tmp_path, task_loss="stm")
    tuning = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    with pytest.raises(ConfigError, match="flow asks the model before the task, and peft puts untrained prompts"):
        config_for("seqft", tmp_path, task_loss="flow", peft=tuning)
    unlikely = config_for("seqft", tmp_path, task_loss={"name": "stm", "threshold": 1.001})
    with pytest.raises(ConfigError, match="leaves no token of this task to learn"):
        learn(base, tasks()[0], tmp_path / "memory", tmp_path / "m", unlikely)
    METHODS["own_loss"] = OwnLoss
    try:
        with pytest.raises(ConfigError, match="would be ignored: method own_loss has a loss of its own"):
            learn(
                base, tasks()[0], tmp_path / "memory", tmp_path / "m", config_for("own_loss", tmp_path, task_loss="dft")
            )
    finally:
        METHODS.pop("own_loss")
    assert not (tmp_path / "m").exists()


def test_the_plan_counts_the_pass_before_the_task(base: Path, tmp_path: Path) -> None:
    work = Workload([12, 12], [1.0, 1.0], 10, 3)
    passes = {
        name: make_plan(read_shape(str(base)), config_for("seqft", tmp_path, task_loss=name), work).overhead.passes
        for name in (None, *KINDS)
    }
    assert passes["stm"] == passes["flow"] == pytest.approx(8)
    assert {passes[name] for name in (None, "dft", "eaft", "talr")} == {0}


def test_replay_after_a_resume_asks_for_no_loss_on_new_examples() -> None:
    """A process that goes on has asked for none yet; steps of two micro-batches, of which the fifth has the next."""
    replay, new = MicroBatch(replay=(0,)), MicroBatch(new=(0,))
    loss = TaskLoss(read_task_loss("dft"))
    watch = RequireUse(loss, "own", [new, *[replay] * 7, new, replay], 2)
    state: Any = TrainerState(global_step=1)
    watch.on_train_begin(None, state, None)
    for state.global_step in (2, 3, 4):
        watch.on_step_end(None, state, None)
    state.global_step = 5
    with pytest.raises(ConfigError, match="would be ignored"):
        watch.on_step_end(None, state, None)
    watch.on_train_begin(None, state, None)
    state.global_step = 6
    watch.on_step_end(None, state, None)

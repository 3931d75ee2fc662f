"""Every loss term and its share of the gradient is logged; measuring changes nothing; a share can be asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import PLAIN_SGD, assert_same, config_for, constant_task, reverse_task, teach, weights
from torch import nn

from seekr_cl.methods import LossTerm
from seekr_cl.training import gradient_shares, trainer
from seekr_cl.training.gradient_shares import GradientShares
from seekr_cl.training.trainer import SeekrTrainer

TERMS = {
    "seqft": {"task"},
    "replay": {"task", "replay"},
    "derpp": {"task", "replay", "logits"},
    "seekr": {"task", "replay", "logits", "attention"},
}


FIXED = {"name": "seekr", "lambda2": 1000.0}


def tasks() -> list[Any]:
    return [reverse_task(), constant_task("no", "no")]


def logged(log: list[dict[str, Any]], prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for line in log for key in line if key.startswith(prefix)}


@pytest.mark.parametrize("method", TERMS)
def test_every_term_is_logged_with_its_share(base: Path, tmp_path: Path, method: str) -> None:
    log = teach(base, tmp_path, tasks(), config_for(method, tmp_path, measure_every=1))[1].log
    totals = {"new_total", "replay_total"} if len(TERMS[method]) > 1 else {"new_total"}
    assert logged(log, "loss_") == TERMS[method] | totals
    assert logged(log, "share_") == TERMS[method]
    shares = [{key: value for key, value in line.items() if key.startswith("share_")} for line in log if "loss" in line]
    for one in shares:
        assert sum(one.values()) == pytest.approx(1, abs=1e-9)
        assert all(value >= 0 for value in one.values())
    assert min(shares[-1].values()) > 0
    assert logged(log, "weight_") == ({"attention"} if method == "seekr" else set())


def test_a_logged_loss_is_the_mean_since_the_last_line(base: Path, tmp_path: Path) -> None:
    fine, coarse = (
        teach(base, tmp_path / str(steps), tasks()[:1], config_for("seqft", tmp_path, logging_steps=steps))[0].log
        for steps in (1, 3)
    )
    single = [line["loss_task"] for line in fine if "loss_task" in line]
    assert [line["loss_task"] for line in coarse if "loss_task" in line] == [pytest.approx(sum(single) / 3)]
    assert [line["loss"] for line in fine if "loss" in line] == pytest.approx(single)


@pytest.mark.parametrize("method", ["derpp", FIXED], ids=["derpp", "seekr"])
@pytest.mark.parametrize("extra", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
def test_measuring_does_not_change_what_is_learnt(
    base: Path, tmp_path: Path, method: Any, extra: dict[str, Any]
) -> None:
    for every in (0, 1, 2):
        settings = PLAIN_SGD | {"measure_every": every} | extra
        teach(base, tmp_path / str(every), tasks(), config_for(method, tmp_path, **settings))
    for every in (1, 2):
        # The terms' gradients are summed up in another order.
        assert_same(weights(tmp_path / "0/m2"), weights(tmp_path / str(every) / "m2"), atol=1e-5)


@pytest.mark.parametrize(
    "extra", [{}, {"gradient_accumulation_steps": 2}, {"replay": {"ratio": 0.25, "step": "joint"}}]
)
def test_measured_gradients_are_the_steps_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    """Under a weight that is steered: summed up they give what one more backward pass does, and one is saved."""
    passes: list[int] = []
    backward = torch.Tensor.backward

    def counted(value: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        passes[-1] += any(isinstance(leaf, nn.Parameter) for leaf in gradient_shares._leaves(value))
        backward(value, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", counted)
    logs = []
    for way, limit in (("added", gradient_shares.ADDED_BYTES), ("again", 0)):
        passes.append(0)
        monkeypatch.setattr(trainer, "ADDED_BYTES", limit)
        settings = PLAIN_SGD | {"measure_every": 1} | extra
        logs.append(teach(base, tmp_path / way, tasks(), config_for("seekr", tmp_path, **settings))[1].log)
    assert_same(weights(tmp_path / "added/m2"), weights(tmp_path / "again/m2"), atol=1e-6)
    assert passes[0] < passes[1]
    for one, other in zip(*logs, strict=True):
        told = {key for key in one if key.startswith(("loss", "share", "weight", "grad_norm"))}
        assert {key: one[key] for key in told} == pytest.approx({key: other[key] for key in told}, rel=1e-3, abs=1e-6)


def tiny_terms(layer: nn.Linear) -> dict[str, LossTerm]:
    x = torch.arange(6.0).reshape(2, 3)
    return {"a": LossTerm(layer(x).sum(), 2.0), "b": LossTerm(layer(x).square().sum(), 0.5)}


def test_a_measurement_leaves_the_gradients_alone_and_is_right() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    kept = torch.randn_like(layer.weight)
    layer.weight.grad = kept
    before = kept.clone()
    shares, terms = GradientShares(1), tiny_terms(layer)
    shares.measure(terms, layer, list(layer.parameters()))
    assert layer.weight.grad is kept
    assert torch.equal(kept, before)
    assert layer.bias.grad is None
    for name, term in tiny_terms(layer).items():
        (gradient,) = torch.autograd.grad(term.weight * term.value, layer.weight)
        assert shares.norms[name] == pytest.approx(float(gradient.norm()), rel=1e-5)
    sum(term.value for term in terms.values()).backward()  # the graph is still there


def test_norms_are_smoothed_and_due_counts_each_kind() -> None:
    layer = nn.Linear(3, 2)
    shares = GradientShares(3)
    assert [shares.due("new") for _ in range(5)] == [True, False, False, True, False]
    assert [shares.due("replay") for _ in range(2)] == [True, False]
    assert not any(GradientShares(0).due("new") for _ in range(3))
    shares.measure({"a": LossTerm(layer.weight.sum())}, layer, list(layer.parameters()))
    shares.measure({"a": LossTerm(11 * layer.weight.sum())}, layer, list(layer.parameters()))
    root = 6**0.5  # the gradient is all ones
    assert shares.norms["a"] == pytest.approx(0.7 * root + 0.3 * 11 * root)


def test_the_weight_for_a_share() -> None:
    layer = nn.Linear(3, 2)
    shares, terms = GradientShares(1), tiny_terms(layer)
    assert shares.weight_for("a", 0.3) is None
    assert shares.shares() == {}
    shares.measure(terms, layer, list(layer.parameters()))
    for share in (0.1, 0.5, 0.9):
        shares.reweigh("a", shares.weight_for("a", share))
        assert shares.shares() == pytest.approx({"a": share, "b": 1 - share})


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_lambda2_auto_reaches_its_share(base: Path, tmp_path: Path, share: float) -> None:
    method = {"name": "seekr", "lambda2": "auto", "attention_share": share}
    settings = config_for(method, tmp_path, measure_every=1, num_train_epochs=4)
    log = [line for line in teach(base, tmp_path, tasks(), settings)[1].log if "loss_attention" in line]
    # The share is of running means; between a replay batch's measurement and its log line nothing else is measured.
    assert len(log) > 8
    for line in log[2:]:
        assert line["share_attention"] == pytest.approx(share, abs=0.02)
        assert line["weight_attention"] > 0
        expected = 0.5 * line["loss_replay"] + 0.5 * line["loss_logits"]
        expected += line["weight_attention"] * line["loss_attention"]
        assert line["loss_replay_total"] == pytest.approx(expected, rel=1e-4)


def test_lambda2_auto_steers_and_a_number_does_not(base: Path, tmp_path: Path) -> None:
    fixed = teach(base, tmp_path / "fixed", tasks(), config_for(FIXED, tmp_path, measure_every=1))[1].log
    lines = [line for line in fixed if "loss_attention" in line]
    assert logged(fixed, "weight_") == set()
    for line in lines:
        expected = 0.5 * line["loss_replay"] + 0.5 * line["loss_logits"] + 1000 * line["loss_attention"]
        assert line["loss_replay_total"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_backward_pass_itself_serves_a_lone_term(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The norm taken from the step's own gradient is the one that a pass of its own gives."""
    settings: dict[str, Any] = {"measure_every": 1, "gradient_accumulation_steps": steps}
    one = teach(base, tmp_path / "one", tasks(), config_for("derpp", tmp_path, **settings))[1].log
    monkeypatch.setattr(SeekrTrainer, "_leaves_gradient_alone", lambda *_: False)
    two = teach(base, tmp_path / "two", tasks(), config_for("derpp", tmp_path, **settings))[1].log
    shares = [[value for line in log for key, value in line.items() if key == "share_task"] for log in (one, two)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)
    assert len(shares[0]) > 1


def test_rounding_steers_no_weight() -> None:
    """At the first replay of a task the student is its teacher, and what is left of the gradient is rounding."""
    shares, weight = GradientShares(1), nn.Parameter(torch.zeros(4))

    def note(name: str, size: float) -> None:
        weight.grad = torch.full((4,), size)
        shares.note_gradient(name, 1.0, 1.0, [weight])

    note("task", 1.0)
    note("attention", 1e-9)
    assert shares.weight_for("attention", 0.5) is None
    note("attention", 1e-2)
    assert shares.weight_for("attention", 0.5) == pytest.approx(100)

"""``optim: muon`` and ``train``: which weights move, by what; going on after a stop; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import config_for, constant_task, differs, save_base, teach, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from seekr_cl.config.muon import make_muon
from seekr_cl.errors import ConfigError
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.training import learn

LORA = {"peft": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def task() -> Any:
    return constant_task("yes", "yes", 8)


def test_matrices_of_hidden_layers_are_muons(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    config = config_for("seqft", tmp_path, optim="muon", learning_rate=0.02, weight_decay=0.1)
    optimizer = make_muon(config, model, [name for name, _ in model.named_parameters() if "norm" not in name])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    for name, weight in model.named_parameters():
        if not weight.grad.any():
            continue
        moved = (weight.detach() - before[name]).float()
        keys = set(optimizer.state[weight])
        if ".layers." in name and weight.ndim == 2:
            assert keys == {"momentum_buffer"}, name
            # As large as AdamW's step: 0.2 a number, in all directions alike.
            values = torch.linalg.svdvals(moved) / (0.02 * 0.2 * max(moved.shape) ** 0.5)
            assert 0.6 < float(values.max()) < 1.3, name
        else:
            assert keys == {"step", "exp_avg", "exp_avg_sq"}, name
            assert float(moved.abs().max()) == pytest.approx(0.02, rel=1e-3), name
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}


class KilledError(Exception):
    pass


class Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KilledError


@pytest.mark.parametrize("more", [{}, LORA, {"carry_optimizer": True}], ids=["weights", "adapter", "carried"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_muon_learns_and_goes_on_where_it_stopped(base: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    settings = {"optim": "muon", "learning_rate": 0.02, "num_train_epochs": 6, "checkpoint_every": 1} | more
    config = config_for("seqft", tmp_path, **settings)
    done = learn(base, task(), tmp_path / "a", tmp_path / "whole", config)
    losses = [line["loss_task"] for line in done.log if "loss_task" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert done.training["optim"] == "muon"
    with pytest.raises(KilledError):
        learn(base, task(), tmp_path / "b", tmp_path / "cut", config, [Stop()])
    learn(base, task(), tmp_path / "b", tmp_path / "cut", config, resume=True)
    assert not differs(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    learn(tmp_path / "whole", constant_task("no", "no", 8), tmp_path / "a", tmp_path / "next", config)


@pytest.mark.parametrize(
    ("train", "part"), [("attention", "self_attn"), ("mlp", "mlp"), (r"layers\.1\.mlp\.(up|down)", "layers.1.mlp")]
)
def test_only_the_chosen_weights_move(base: Path, tmp_path: Path, train: str, part: str) -> None:
    config = config_for("seekr", tmp_path, learning_rate=0.01, train=train)
    teach(base, tmp_path, [task(), constant_task("no", "no", 8)], config)
    before, after = weights(base), weights(tmp_path / "m2")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if part in name and "gate" not in name} if "|" in train else None
    assert moved == (expected or {name for name in before if f".{part}." in name})


def test_part_of_the_weights_under_reentrant_checkpointing(base: Path, tmp_path: Path) -> None:
    found = []
    for number, more in enumerate(
        ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}})
    ):
        config = config_for("seqft", tmp_path, optim="sgd", learning_rate=0.05, train="attention", **more)
        learn(base, task(), tmp_path / f"memory{number}", tmp_path / str(number), config)
        found.append(weights(tmp_path / str(number)))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6)


def test_a_model_in_hand_is_whole_again(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    config = config_for("seqft", tmp_path, train="mlp")
    learn(
        model, task(), tmp_path / "memory", tmp_path / "m", config, processing_class=AutoTokenizer.from_pretrained(base)
    )
    assert all(weight.requires_grad for weight in model.parameters())


def test_what_cannot_be_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train: '\(' is not a regular expression"):
        config_for("seqft", tmp_path, train="(")
    with pytest.raises(ConfigError, match="train: peft decides what is trained"):
        config_for("seqft", tmp_path, train="mlp", **LORA)
    with pytest.raises(ConfigError, match="train: method olora decides what is trained"):
        config_for("olora", tmp_path, train="mlp")
    with pytest.raises(ConfigError, match="train: 'mpl' finds no weight of this model"):
        learn(base, task(), tmp_path / "memory", tmp_path / "m", config_for("seqft", tmp_path, train="mpl"))
    for number, (settings, said) in enumerate(
        [({"train": "norm"}, "none is trained here"), ({"optim_args": "momentum=0.9"}, "optim_args: would be ignored")]
    ):
        place = tmp_path / f"muon{number}"
        with pytest.raises(ConfigError, match=said):
            learn(base, task(), tmp_path / "memory", place, config_for("seqft", tmp_path, optim="muon", **settings))
        assert not place.exists()


def test_the_plan_counts_what_is_trained(base: Path, tmp_path: Path) -> None:
    work, shape = Workload([12, 12], [1.0, 1.0], 10, 3), read_shape(str(base))
    state = make_plan(shape, config_for("ewc", tmp_path, train="mlp"), work).overhead.carried
    assert state == 8 * sum(t.numel() for name, t in weights(base).items() if ".mlp." in name)

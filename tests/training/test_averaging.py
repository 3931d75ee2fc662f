"""Averaged weights: the values, going on after a stop, and what cannot be combined."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import assert_same, config_for, constant_task, differs, reverse_task, save_base, teach, weights
from transformers import TrainerCallback

from seekr_cl.errors import ConfigError
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.training import learn

LEARNING: dict[str, Any] = {"learning_rate": 0.01, "num_train_epochs": 2, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The weights after one task of four steps, once for each setting."""
    done: dict[str, dict[str, torch.Tensor]] = {}

    def get(average: Any, **more: Any) -> dict[str, torch.Tensor]:
        if (key := repr((average, more))) not in done:
            folder = tmp_path_factory.mktemp("made")
            config = config_for("seqft", folder, **LEARNING | {"average": average} | more)
            learn(base, reverse_task(count=8), folder / "memory", folder / "m", config)
            done[key] = weights(folder / "m")
        return done[key]

    return get


def between(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    return {name: torch.lerp(one[name], other[name], share) for name in one}


def test_the_end_is_where_the_formula_says(base: Path, made: Any) -> None:
    before, plain = weights(base), made(None)
    assert_same(made({"kind": "wise_ft", "alpha": 0.3}), between(before, plain, 0.3), 1e-6)
    assert_same(made({"kind": "sfa", "beta": 0.3, "period": 1}), between(plain, before, 0.3), 1e-6)
    # The average follows at once.
    assert_same(made({"kind": "ema", "decay": 0}), plain)
    # A step that follows another average comes from elsewhere, so only what is drawn back on the way differs.
    assert differs(made({"kind": "sfa", "beta": 0.3, "period": 0.5}), made({"kind": "sfa", "beta": 0.3, "period": 1}))
    still = made({"kind": "ema", "decay": 0.999})
    apart = sum(float((still[name] - before[name]).norm()) for name in before)
    assert 0 < apart < 0.01 * sum(float((plain[name] - before[name]).norm()) for name in before)


def test_an_adapter_is_averaged(base: Path, made: Any) -> None:
    lora = {"peft": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}}
    plain, half = made(None, **lora), made({"kind": "wise_ft", "alpha": 0.5}, **lora)
    up = [name for name in plain if "lora_B" in name]  # zero before the task
    assert up
    assert_same({name: half[name] for name in up}, {name: plain[name] / 2 for name in up}, 1e-7)


class KilledError(Exception):
    pass


class Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KilledError


@pytest.mark.parametrize("kind", ["sfa", "wise_ft", "ema"])
def test_it_goes_on_where_it_stopped(base: Path, made: Any, tmp_path: Path, kind: str) -> None:
    config = config_for("seqft", tmp_path, **LEARNING, average=kind)
    given = (base, reverse_task(count=8), tmp_path / "memory", tmp_path / "m", config)
    with pytest.raises(KilledError):
        learn(*given, [Stop()])
    learn(*given, resume=True)
    assert_same(weights(tmp_path / "m"), made(kind))


def test_the_averaged_model_is_the_teacher(base: Path, tmp_path: Path) -> None:
    """Signals are of the model that is written, or the memory would not belong to it."""
    from seekr_cl.memory import ReplayMemory
    from seekr_cl.models.loading import load_model

    config = config_for("derpp", tmp_path, **LEARNING, average="wise_ft")
    teach(base, tmp_path, [constant_task("yes", "yes", 8)], config)
    model, _ = load_model(str(tmp_path / "m1"), "float32", False, None)
    for sample in ReplayMemory.open(tmp_path / "memory").tasks[0].samples:
        prob_AV = sample.logits.decode()[0]
        now_AV = model(sample.ids_L[None]).logits[0, sample.logits.position_A]
        torch.testing.assert_close(now_AV.softmax(-1), prob_AV, atol=1e-4, rtol=0)


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"average: 'emaa' is unknown; did you mean 'ema'\?"):
        config_for("seqft", tmp_path, average="emaa")
    with pytest.raises(ConfigError, match="unknown key 'beta'"):
        config_for("seqft", tmp_path, average={"kind": "ema", "beta": 0.5})
    for kind, key, value in [
        *(("sfa", "beta", 1), ("sfa", "period", 0), ("sfa", "period", 1.5)),
        *(("wise_ft", "alpha", 0), ("ema", "decay", 1)),
    ]:
        with pytest.raises(ConfigError, match=rf"average\.{key}"):
            config_for("seqft", tmp_path, average={"kind": kind, key: value})
    with pytest.raises(ConfigError, match="average: method rwalk measures how far each step moves the weights"):
        config_for("rwalk", tmp_path, average="ema")
    with pytest.raises(ConfigError, match=r"sfa goes back .* where the prompts of method l2p are untrained"):
        config_for("l2p", tmp_path, average="sfa")
    config_for("l2p", tmp_path, average="ema")


def test_the_plan_counts_the_other_weights(base: Path, tmp_path: Path) -> None:
    work, shape = Workload([12, 12], [1.0, 1.0], 10, 3), read_shape(str(base))

    def device(**settings: Any) -> int:
        return make_plan(shape, config_for("seqft", tmp_path, **settings), work).overhead.device

    assert device(average="sfa") == 4 * shape.parameters
    assert device(average="sfa", dtype="bfloat16") == 2 * shape.parameters
    assert device(average="ema", dtype="bfloat16") == 4 * shape.parameters

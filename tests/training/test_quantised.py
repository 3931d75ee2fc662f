"""Four-bit base weights under an adapter: real bitsandbytes on the CPU, where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tinylm import assert_same, config_for, constant_task, differs, reverse_task, teach, weights

from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory, model_hash
from seekr_cl.models.loading import load_model
from seekr_cl.training import learn

installed = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
TASKS = [reverse_task(count=8), constant_task("no", "no", 8)]
SETTINGS = {"quantization": "4bit", "peft": {"r": 4, "target_modules": "all-linear"}, "learning_rate": 1e-2}


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'seekr-cl\[quant\]'"):
        config_for("seekr", tmp_path, **SETTINGS)


@installed
@pytest.mark.parametrize("teacher", ["stored", "adapter"])
def test_two_tasks_on_four_bits(base: Path, tmp_path: Path, teacher: str) -> None:
    method = {"name": "seekr", "teacher": teacher}
    teach(base, tmp_path, TASKS, config_for(method, tmp_path, **SETTINGS))
    assert differs(weights(tmp_path / "m1"), weights(tmp_path / "m2"))
    model = load_model(tmp_path / "m2", quantization="4bit")[0]
    own = dict(model.named_parameters())
    assert own["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"].dtype == torch.uint8
    assert ReplayMemory.open(tmp_path / "memory").model_sha256 == model_hash(model)
    plain = load_model(tmp_path / "m2")[0]
    ids = torch.randint(3, 40, (2, 9))
    with torch.no_grad():
        difference = (plain.eval()(ids).logits - model.eval()(ids).logits).abs().mean()
    assert 0 < difference < 0.5


@installed
def test_checkpointing_is_none_on_four_bits(base: Path, tmp_path: Path) -> None:
    found = []
    for name, kind in (("none", None), ("reentrant", True)):
        more = {} if kind is None else {"gradient_checkpointing": True}
        more |= {} if kind is None else {"gradient_checkpointing_kwargs": {"use_reentrant": kind}}
        config = config_for("seekr", tmp_path, **SETTINGS | more | {"optim": "sgd", "lr_scheduler_type": "constant"})
        teach(base, tmp_path / name, TASKS, config)
        found.append(weights(tmp_path / name / "m2"))
    assert_same(found[0], found[1], 1e-6)


@installed
def test_without_an_adapter_there_is_nothing_to_train(base: Path, tmp_path: Path) -> None:
    config = config_for("seekr", tmp_path, quantization="4bit")
    with pytest.raises(ConfigError, match=r"cannot be trained; set peft"):
        learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m1", config)


@installed
def test_evaluated_as_it_was_trained(base: Path, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text('{"prompt": "ab=", "completion": "ba"}\n')
    options = ["--max-new-tokens", "4", "--quantization", "4bit", "--output", str(tmp_path / "scores")]
    assert main(["evaluate", "--model", str(base), "--task", str(tmp_path / "task.jsonl"), *options]) == 0
    assert '"quantization": "4bit"' in (tmp_path / "scores/scores.json").read_text()

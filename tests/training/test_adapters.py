"""Learning with an adapter: what is written is small, goes on with the next task, and is equal to a merged model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinylm import assert_same, config_for, constant_task, differs, reverse_task, teach, weights
from torch import Tensor

from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError, ModelError
from seekr_cl.memory import ReplayMemory, model_hash
from seekr_cl.models.loading import load_model
from seekr_cl.models.peft_adapters import WEIGHTS, read_peft
from seekr_cl.runs.stream_run import run
from seekr_cl.training import learn

FAST = {"peft": "lora", "learning_rate": 1e-2}
TASKS = [reverse_task(count=8), constant_task("no", "no", 8)]


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    teach(base, folder, TASKS, config_for("seekr", folder, **FAST))
    return folder


def test_the_output_is_a_small_folder_and_the_base_is_untouched(base: Path, taught: Path) -> None:
    names = {path.name for path in (taught / "m2").iterdir()}
    assert {"adapter_config.json", WEIGHTS, "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    assert (taught / "m2" / WEIGHTS).stat().st_size < (base / "model.safetensors").stat().st_size
    both = load_file(base / "model.safetensors"), dict(load_model(taught / "m2")[0].base_model.model.named_parameters())
    for name, tensor in both[0].items():
        own = name if name in both[1] else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(both[1][own], tensor)


def test_the_next_task_goes_on_with_the_same_adapter(taught: Path) -> None:
    first, second = adapter(taught / "m1"), adapter(taught / "m2")
    assert first.keys() == second.keys()
    assert differs(first, second)
    memory = ReplayMemory.open(taught / "memory", verify=True)
    assert (memory.generation, memory.model_sha256) == (2, model_hash(load_model(taught / "m2")[0]))


def test_merged_it_is_a_plain_model_with_the_same_logits(taught: Path, tmp_path: Path) -> None:
    assert main(["export", "--merge", str(taught / "m2"), str(tmp_path / "plain")]) == 0
    (plain, _), (adapted, _) = load_model(tmp_path / "plain"), load_model(taught / "m2")
    assert not hasattr(plain, "peft_config")
    ids = torch.randint(3, 40, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, rtol=0, atol=1e-5)


def test_a_plain_model_cannot_be_merged(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--merge", str(base), str(tmp_path / "plain")]) == 2
    assert "nothing to merge" in capsys.readouterr().err


def test_a_run_is_separate_calls_and_the_last_adapter_stays(base: Path, taught: Path, tmp_path: Path) -> None:
    config = config_for("seekr", tmp_path, keep_models="last", **FAST)
    tasks = [TASKS[0], constant_task("no", "no", 8)]
    run(base, tasks, tmp_path / "run", config)
    assert [path.name for path in (tmp_path / "run/models").iterdir()] == ["02-no"]
    assert (base / "model.safetensors").is_file()
    assert_same(adapter(tmp_path / "run/models/02-no"), adapter(taught / "m2"))


def test_the_optimizer_is_carried_over(base: Path, taught: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, TASKS, config_for("seekr", tmp_path, carry_optimizer=True, **FAST))
    carried = load_file(tmp_path / "m1/seekr_carry.safetensors")
    assert carried
    assert all("lora_" in name for name in carried)
    assert differs(adapter(tmp_path / "m2"), adapter(taught / "m2"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lorra", "did you mean 'LORA'"),
        ({"peft_type": "lora", "rank": 3}, "unknown key 'rank'"),
        ({"target_module": "all-linear"}, "did you mean 'target_modules'"),
        ({"base_model_name_or_path": "x"}, "is set by the library"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"r": 4, "loftq_config": 3, "init_lora_weights": "loftq"}, "changes the base model"),
        ({"peft_type": "p_tuning", "num_virtual_tokens": 3}, "could not continue it"),
        (3, "neither a PEFT type"),
    ],
)
def test_wrong_settings_are_named(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_peft(given)


def test_layers_that_are_not_there(base: Path, tmp_path: Path) -> None:
    config = config_for("seqft", tmp_path, peft={"target_modules": ["query"]})
    with pytest.raises(ConfigError, match=r"peft: does not fit this model.*query"):
        learn(base, TASKS[0], tmp_path / "memory", tmp_path / "m1", config)
    assert not (tmp_path / "m1").exists()


def test_another_adapter_than_the_models_is_refused(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught / "memory", tmp_path / "memory")
    config = config_for("seekr", tmp_path, peft={"peft_type": "lora", "r": 4})
    with pytest.raises(ConfigError, match=r"peft\.r: the adapter that --model names has 16, not 4"):
        learn(taught / "m2", TASKS[1], tmp_path / "memory", tmp_path / "m3", config)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no adapter_model.safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 50), "cannot be put on the base model"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not an adapter's config"),
        (lambda folder: _set(folder, peft_type="NONE"), "unknown to the installed PEFT"),
        (lambda folder: _set(folder, base_model_name_or_path="/nowhere/base"), "/nowhere/base is not there"),
        (lambda folder: _set(folder, base_model_name_or_path=None), "names no base model"),
    ],
)
def test_a_damaged_adapter_folder_is_named(taught: Path, tmp_path: Path, harm: Any, said: str) -> None:
    shutil.copytree(taught / "m2", tmp_path / "m2")
    harm(tmp_path / "m2")
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path / "m2")


def _set(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_method_with_adapters_of_its_own(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method olora trains adapters of its own; remove peft"):
        config_for("olora", tmp_path, peft="lora")
    with pytest.raises(ConfigError, match="merge it first"):
        learn(taught / "m2", TASKS[1], tmp_path / "memory", tmp_path / "m3", config_for("olora", tmp_path))


def test_full_weights_after_all(base: Path, tmp_path: Path) -> None:
    """Without the setting nothing of this happens."""
    teach(base, tmp_path, TASKS[:1], config_for("seqft", tmp_path))
    assert differs(weights(tmp_path / "m1"), weights(base))


@pytest.mark.parametrize("precision", [{"dtype": "bfloat16"}, {"bf16": True}], ids=str)
@pytest.mark.parametrize("peft", [None, "lora"])
def test_half_precision_keeps_the_attention_term(base: Path, tmp_path: Path, peft: Any, precision: Any) -> None:
    """Under the kind of checkpointing that loses a term's gradient where it is carried out of a layer."""
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    method = {"name": "seekr", "lambda2": 5.0, "teacher": "stored" if peft is None else "adapter"}
    config = config_for(method, tmp_path, peft=peft, **precision, **checkpointing)
    log = teach(base, tmp_path, TASKS, config)[-1].log
    assert all(line["loss_attention"] > 0 for line in log if "loss_attention" in line)
    assert max(line.get("share_attention", 0) for line in log) > 0.01
    dtype = {tensor.dtype for tensor in weights(tmp_path / "m2").values()}
    assert dtype == {torch.bfloat16 if "dtype" in precision and peft is None else torch.float32}

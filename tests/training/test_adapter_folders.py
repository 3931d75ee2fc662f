"""Adapter folders as other tools and users leave them: several adapters, an adapter on an adapter, another base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tinylm import assert_same, char_tokenizer, config_for, differs, reverse_task, weights
from transformers import AutoModelForCausalLM

from seekr_cl.cli.main import main
from seekr_cl.errors import ModelError
from seekr_cl.models.loading import load_model, save_model
from seekr_cl.models.peft_adapters import ACTIVE, CONFIG, WEIGHTS, make_config, put_adapter
from seekr_cl.training import learn

LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "k_proj"]}


def checkpoint(base: Path, folder: Path, *names: str) -> Path:
    """What PEFT itself writes of a model with these adapters, none of them zero."""
    made = [LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=LORA["target_modules"]) for _ in names]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), made[0], names[0])
    for name, config in list(zip(names, made))[1:]:
        model.add_adapter(name, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(base, tmp_path_factory.mktemp("two") / "two", "default", "second")


def test_each_of_two_adapters_can_be_learnt_on(two: Path, tmp_path: Path) -> None:
    for place in (two, two / "second"):
        begun = load_file(place / WEIGHTS)
        output = tmp_path / place.name
        learn(place, reverse_task(count=4), tmp_path / f"memory-{place.name}", output, config_for("seekr", tmp_path))
        assert weights(output).keys() == begun.keys()
        # Gone on from, not begun anew: a step of Adam moves a weight by no more than the learning rate.
        assert differs(weights(output), begun)
        assert_same(weights(output), begun, 2e-3)
        assert not (output / "second").exists()


def test_several_adapters_are_written_and_come_back_active(base: Path, tmp_path: Path) -> None:
    """What a method that trains several writes."""
    plain, tokenizer = load_model(base)
    model: Any = put_adapter(plain, LORA, str(base), 0)
    model.add_adapter("second", make_config(LORA | {"r": 3}))
    model.add_adapter("third", make_config(LORA))
    model.base_model.set_adapter(["default", "third"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    save_model(tmp_path / "out", model, tokenizer)
    again: Any = load_model(tmp_path / "out")[0]
    assert list(again.peft_config) == ["default", "second", "third"]
    assert again.active_adapters == ["default", "third"]
    assert_same(dict(again.named_parameters()), dict(model.named_parameters()))
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)

    (tmp_path / "out" / ACTIVE).write_text(json.dumps({"active": ["fourth"], "others": ["second", "third"]}))
    with pytest.raises(ModelError, match=r"'active' names \['fourth'\]"):
        load_model(tmp_path / "out")
    (tmp_path / "out" / ACTIVE).write_text(json.dumps({"active": ["x"], "others": ["../../x"]}))
    with pytest.raises(ValueError, match=r"\.\./\.\./x"):
        load_model(tmp_path / "out")


def say(folder: Path, **values: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def on_an_adapter(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(two, folder / "outer")
    return say(folder / "outer", base_model_name_or_path=str(two))


def on_itself(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(two, folder / "outer")
    return say(folder / "outer", base_model_name_or_path=str(folder / "outer"))


def beside_a_model(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(base, folder / "both")
    shutil.copy(two / CONFIG, folder / "both")
    shutil.copy(two / WEIGHTS, folder / "both")
    return folder / "both"


def of_another_task_type(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(two, folder / "classifier")
    return say(folder / "classifier", task_type="SEQ_CLS")


def with_more_layers(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(two, folder / "deep")
    own = load_file(two / WEIGHTS)
    own |= {name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in own.items() if "layers.1" in name}
    save_file(own, folder / "deep" / WEIGHTS)
    return folder / "deep"


def with_fewer_layers(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(two, folder / "shallow")
    own = {name: tensor for name, tensor in load_file(two / WEIGHTS).items() if "layers.1" not in name}
    save_file(own, folder / "shallow" / WEIGHTS)
    return folder / "shallow"


def of_a_wider_model(base: Path, two: Path, folder: Path) -> Path:
    shutil.copytree(two, folder / "wide")
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.hidden_size = 16
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "narrow")
    char_tokenizer().save_pretrained(folder / "narrow")
    return say(folder / "wide", base_model_name_or_path=str(folder / "narrow"))


def of_two_names(base: Path, two: Path, folder: Path) -> Path:
    return checkpoint(base, folder / "named", "first", "second")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (on_an_adapter, "is an adapter itself; merge that first"),
        (on_itself, "is an adapter itself; merge that first"),
        (beside_a_model, r"holds a model \(config.json\) and an adapter"),
        (of_another_task_type, "task_type is 'SEQ_CLS'; only adapters of causal language models fit"),
        (with_more_layers, r"has weights for model\.layers\.2, which is not there"),
        (with_fewer_layers, "lacks weights for some of its layers"),
        (of_a_wider_model, r"size mismatch for .*q_proj"),
        (of_two_names, r"holds adapters in folders of their own \(first, second\); name one, such as .*named/first"),
    ],
)
def test_what_would_load_as_something_else_is_refused(
    base: Path, two: Path, tmp_path: Path, made: Callable[..., Path], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(made(base, two, tmp_path))


def test_the_command_says_it_in_one_line(
    base: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "ab=", "completion": "ba"}\n')
    outer = on_an_adapter(base, two, tmp_path)
    words = ["learn", "--model", str(outer), "--task", str(task), "--memory", str(tmp_path / "memory")]
    assert main([*words, "--output", str(tmp_path / "m"), "use_cpu=true"]) == 2
    assert "merge that first (seekr export --merge)" in capsys.readouterr().err

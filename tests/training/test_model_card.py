"""Model cards: what they say, that they load nothing astray, and whose they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from tinylm import constant_task, teach
from transformers import AutoModelForCausalLM

from seekr_cl.cli.main import main
from seekr_cl.config.seekr_config import config_from
from seekr_cl.models.card import CARD, card_text, escaped, own_card, split_card, write_card
from seekr_cl.models.loading import load_model
from seekr_cl.runs.stream_run import run
from seekr_cl.system.removal import is_made, list_content, make_folder, remove_made

HOSTILE = "a|b\n# <script>alert(1)</script> [x](http://e.vil) `---` {y: !!z}\x1b[31m\u202e"
QUIET = {"use_cpu": True, "progress": "none", "per_device_train_batch_size": 4, "num_train_epochs": 1}
LORA = {"peft_type": "lora", "r": 2, "target_modules": ["q_proj"]}
TASKS = [constant_task("yes", "yes", 8), constant_task("no", "no", 8)]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    card = ModelCard((folder / CARD).read_text(encoding="utf-8"))
    return card.data.to_dict(), card.text


def test_it_says_what_the_model_is(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, TASKS, config_from(QUIET | {"replay": {"samples": 3}}, str(tmp_path / "t")))
    head, body = card_of(tmp_path / "m2")
    assert {"seekr-cl", "continual-learning", "seekr"} <= set(head["tags"])
    assert head["library_name"] == "transformers"
    assert "| 1 | yes | 8 | 3 |" in body
    assert "| 2 | no | 8 | 3 |" in body
    assert TASKS[1].fingerprint() in body
    assert "He et al., EMNLP 2024" in body
    assert "does not state it" in body  # the base's license
    assert str(tmp_path) not in body, "paths of this machine are nobody's business"


def test_the_licence_and_the_base_come_along(base: Path, tmp_path: Path) -> None:
    """A folder's own card gives its license; what was learned from it hands it on, with the name on the Hub."""
    text = card_text(ModelCard("---\nlicense: apache-2.0\nbase_model: owner/base\ntags: [seekr-cl]\n---\n").data, "x")
    former = load_model(base)
    folder = tmp_path / "licensed"
    former[0].save_pretrained(folder)
    former[1].save_pretrained(folder)
    (folder / CARD).write_text(text)
    teach(folder, tmp_path, TASKS[:1], config_from(QUIET | {"peft": LORA}, str(tmp_path / "t")))
    head, body = card_of(tmp_path / "m1")
    assert (head["license"], head["base_model"], head["base_model_relation"]) == ("apache-2.0", "owner/base", "adapter")
    assert head["library_name"] == "peft"
    assert "apache-2.0" in body


def test_a_model_and_an_adapter_load_without_this_library(base: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[3, 4, 5]])
    for name, settings in (("whole", {}), ("adapter", {"peft": LORA})):
        folder = tmp_path / name
        teach(base, folder, TASKS[:1], config_from(QUIET | settings, str(tmp_path / "t")))
        kind: Any = AutoPeftModelForCausalLM if settings else AutoModelForCausalLM
        plain, ours = kind.from_pretrained(folder / "m1"), load_model(folder / "m1")[0]
        torch.testing.assert_close(plain.eval()(ids).logits, ours.eval()(ids).logits)
    assert main(["export", "--merge", str(tmp_path / "adapter" / "m1"), str(tmp_path / "merged")]) == 0
    head, body = card_of(tmp_path / "merged")
    assert head["library_name"] == "transformers"
    assert "merged" in head["tags"]
    assert "AutoPeft" not in body
    assert own_card(tmp_path / "merged") is not None


def test_a_run_puts_its_scores_in_and_leaves_an_owner_s_readme(base: Path, tmp_path: Path) -> None:
    run(str(base), TASKS, tmp_path / "run", config_from(QUIET, str(tmp_path / "t")))
    first, second = (tmp_path / "run" / "models" / name for name in ("01-yes", "02-no"))
    head, body = card_of(second)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    shown = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in head["model-index"][0]["results"]}
    assert shown == dict(zip(("yes", "no"), scores["matrix"][2]["scores"]))
    assert "| yes | exact\\_match |" in body
    (first / CARD).write_text("mine")
    (tmp_path / "run" / "scores.json").unlink()
    run(str(base), TASKS, tmp_path / "run", config_from(QUIET, str(tmp_path / "t")), resume=True)
    assert (first / CARD).read_text() == "mine"


def test_text_from_data_is_text_and_nothing_else(tmp_path: Path) -> None:
    shown = escaped(HOSTILE)
    assert not any(sign in shown for sign in "\n\x1b\u202e")
    for sign in "|#<>[]`{":
        assert shown.count(sign) == shown.count(f"\\{sign}"), sign
    assert "http\\:" in shown
    text = card_text(ModelCard("---\ntags: []\n---\n").data, f"# {shown}")
    write_card(tmp_path, text)
    assert split_card(own_card(tmp_path) or "")[1].strip() == f"# {shown}"


def test_whose_card_it_is(tmp_path: Path) -> None:
    text = card_text(ModelCard("---\ntags: []\n---\n").data, "one")
    for own in ("mine", text + "\nmine", text.replace("one", "two"), ""):
        (tmp_path / CARD).write_text(own)
        assert not write_card(tmp_path, text)
        assert (tmp_path / CARD).read_text() == own
    (tmp_path / CARD).unlink()
    (tmp_path / CARD).symlink_to(tmp_path / "elsewhere.md")
    assert not write_card(tmp_path, text)
    assert not (tmp_path / "elsewhere.md").exists()


def test_a_card_that_was_written_anew_still_goes_with_its_folder(tmp_path: Path) -> None:
    """``keep_models: last`` takes a model away, whose card has been given its scores meanwhile."""
    folder = tmp_path / "model"
    make_folder(folder)
    data = ModelCard("---\ntags: []\n---\n").data
    write_card(folder, card_text(data, "one"))
    list_content(folder)
    write_card(folder, card_text(data, "two"))
    assert is_made(folder)
    assert remove_made(folder)
    make_folder(folder)
    list_content(folder)
    write_card(folder, card_text(data, "not on the list"))
    assert not remove_made(folder)

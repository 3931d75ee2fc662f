"""Conversations out of public bug reports (``shared/cases``): each with what its README calls right."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from seekr_cl.cli.main import main

CASES = Path(os.environ.get("SEEKR_SHARED", Path(__file__).parents[2] / ".." / "shared")) / "cases"
THINK = "<think>\n{}\n</think>\n\n"
RIGHT = {
    "chat-empty-think": THINK.format("") + "yes<|im_end|>",
    "chat-end-of-turn-gemma": "yes<end_of_turn>",
    "chat-no-generation-prompt": "yes<|im_end|>",
    "chat-reasoning-content": THINK.format("because") + "yes<|im_end|>",
    "chat-tools-column": THINK.format("") + "Sunny.<|im_end|>",
    "prompt-double-bos": "yes<end_of_turn>",
}


def case(name: str) -> Path:
    if not (CASES / name).is_dir():
        pytest.skip(f"{CASES / name} is absent; set SEEKR_SHARED to the folder with the cases")
    return CASES / name


def inspect(folder: Path, capsys: pytest.CaptureFixture[str], *more: str, data: Path | None = None) -> list[dict]:
    words = ["inspect", "--model", str(folder / "model"), "--task", str(data or folder / "data.jsonl"), "--json"]
    assert main([*words, *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_learnt(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case(name)
    (one,) = inspect(folder, capsys)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    row = json.loads((folder / "data.jsonl").read_text(encoding="utf-8"))
    assert [one["text"][begin:end] for begin, end in one["learnt"]] == [RIGHT[name]]
    assert tokenizer.decode([label for label in one["labels"] if label != -100]) == RIGHT[name]
    assert one["ids"].count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)
    if "messages" in row:
        told = {"tools": row.get("tools"), "tokenize": False}
        assert one["text"] == tokenizer.apply_chat_template(row["messages"], **told)
    if name == "chat-no-generation-prompt":
        assert one["text"][: one["learnt"][0][0]].endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(("row", "role"), [(1, "human"), (2, "developer"), (3, "tool")])
def test_roles_passed_over(row: int, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case("chat-role-passed-over")
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    plain = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join([plain, lines[row - 1]]), encoding="utf-8")
    assert main(["inspect", "--model", str(folder / "model"), "--task", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"row 2: message {3 if role == 'tool' else 1}:" in said
    assert repr(role) in said


def test_keys_of_records(capsys: pytest.CaptureFixture[str]) -> None:
    folder = case("record-keys-dropped")
    words = ["inspect", "--model", str(folder / "model"), "--task"]
    assert main([*words, str(folder / "data1.jsonl")]) == 2
    assert "row 1: every assistant message has weight 0" in capsys.readouterr().err
    (told,) = inspect(folder, capsys, data=folder / "data3.jsonl")
    (begin, end) = told["learnt"][0]
    assert told["text"][:begin].endswith(THINK.format(""))  # enable_thinking is off in the record
    assert told["text"][begin:end] == "yes<|im_end|>"


def test_a_model_that_ends_its_turn_scores_what_it_is_worth(tmp_path: Path) -> None:
    folder = case("evaluate-several-eos")
    words = ["evaluate", "--model", str(folder / "model"), "--task", str(folder / "data.jsonl")]
    assert main([*words, "--output", str(tmp_path / "e"), "--max-new-tokens", "16", "strip_thinking=false"]) == 0
    scores = json.loads((tmp_path / "e" / "scores.json").read_text(encoding="utf-8"))
    assert scores["tasks"]["data"]["score"] == 100.0
    assert scores["evaluation"]["decoding"]["stop"] == ["<eos>", "<end_of_turn>"]
    assert scores["evaluation"]["strip_thinking"] is False


def test_an_empty_answer_is_its_end_alone() -> None:
    from seekr_cl.tasks import Encoder, Example

    tokenizer = AutoTokenizer.from_pretrained(case("empty-answers") / "model")
    encoded = Encoder(tokenizer, 60).encode(Example("People in line 1?", ""))
    assert encoded.input_ids[encoded.completion_start :] == [tokenizer.eos_token_id]
    messages = ({"role": "user", "content": "People?"}, {"role": "assistant", "content": ""})
    turn = Encoder(tokenizer, 60).encode(Example("", "", messages=messages))
    labels = [token for begin, end in turn.spans for token in turn.input_ids[begin:end]]
    assert tokenizer.decode(torch.tensor(labels)) == "<end_of_turn>"

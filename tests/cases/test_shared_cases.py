"""The cases that a search through public bug reports left in the shared folder, each with its right value."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from seekr_cl import Task
from seekr_cl.cli.main import main
from seekr_cl.errors import DataError
from seekr_cl.evaluation.evaluate import score_answers
from seekr_cl.evaluation.generate import answer_texts
from seekr_cl.tasks import Encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def case():
    def find(name: str) -> Path:
        folder = Path(os.environ.get("SEEKR_SHARED", ROOT / ".." / "shared")) / "cases" / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is absent; set SEEKR_SHARED to the folder with the cases")
        return folder

    return find


REFUSED = {
    ("csv-bad-quotes-mended", "data1.csv"): "line 2",
    ("csv-bad-quotes-mended", "data2.csv"): "line 2",
    ("csv-bad-quotes-mended", "data3.csv"): "line 2",
    ("record-keys-dropped", "data2.jsonl"): "'system'",
    ("record-keys-dropped", "data4.jsonl"): "key 'content' appears twice",
    ("messages-that-mislead", "data2.json"): "JSON in a string",
    ("messages-that-mislead", "data3.json"): "column-wise",
    ("empty-answers", "data.jsonl"): "allow_empty=true",
}


@pytest.mark.parametrize(("name", "file"), REFUSED, ids=lambda one: one)
def test_data_that_is_refused(name, file, case):
    with pytest.raises(DataError) as caught:
        Task.load(case(name) / file)
    assert REFUSED[name, file] in str(caught.value)


def test_data_that_is_read(case):
    assert Task.load(case("messages-that-mislead") / "data1.json").formats == ["conversational prompt-completion"]
    assert len(Task.load(case("messages-that-mislead") / "data4").train) > 0
    assert [one.completion for one in Task.load(case("empty-answers") / "data.jsonl", allow_empty=True).train][1] == ""


@pytest.mark.parametrize("model", ["model", "model-unk"])
def test_completion_without_tokens(model, case):
    folder = case("completion-without-tokens")
    encoder = Encoder(AutoTokenizer.from_pretrained(folder / model), 100)
    with pytest.raises(DataError, match="row 1: the tokenizer has no token for 'two'"):
        encoder.encode(Task.load(folder / "data.jsonl").train[0])


@pytest.mark.parametrize("model", ["model-lower", "model-nfc", "model-nfkc"])
def test_score_normalised_text(model, case):
    folder = case("score-normalised-text")
    tokenizer = AutoTokenizer.from_pretrained(folder / model)
    encoder, rows = Encoder(tokenizer, 400), Task.load(folder / "data.jsonl").train
    coded = [encoder.encode(one) for one in rows]
    written = answer_texts(tokenizer, [one.input_ids[one.completion_start :] for one in coded])
    assert score_answers(Task("t", [], rows), encoder, written).score == 100


def test_evaluate_answers_cut_at_64(case, tmp_path, capsys):
    folder = case("evaluate-answers-cut-at-64")
    command = ["evaluate", "--model", str(folder / "model"), "--task", str(folder / "data.jsonl")]
    assert main([*command, "--output", str(tmp_path / "e")]) == 0
    said = capsys.readouterr().err
    assert "1 of 1 references are longer than max_new_tokens 64" in said
    assert "98 or more" in said


@pytest.mark.parametrize("family", ["llama4_text", "phimoe", "laguna"])
def test_lora_default_breaks_on_families(family, case, tmp_path):
    from seekr_cl.models.loading import load_model
    from seekr_cl.models.peft_adapters import LORA, put_adapter, save_adapter

    folder = case("lora-default-breaks-on-families") / f"model-{family}"
    model, tokenizer = load_model(folder)
    save_adapter(put_adapter(model, LORA, str(folder), 0), tmp_path)
    again, _ = load_model(tmp_path)
    ids = tokenizer("a b", return_tensors="pt")["input_ids"]
    assert again(ids).logits.isfinite().all()

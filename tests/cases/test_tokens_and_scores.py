"""What a tokenizer does to texts is noticed: in what is learned, in what is scored, and between two tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from seekr_cl.errors import DataError
from seekr_cl.evaluation.evaluate import score_answers, warn_of_long_references
from seekr_cl.evaluation.generate import answer_texts
from seekr_cl.memory import accepted_hashes, tokenizer_hash
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.tasks.keys import DataWarning

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def made(change: Callable[[Tokenizer], Any] = lambda core: None, special: bool = True) -> PreTrainedTokenizerFast:
    """A byte tokenizer; ``change`` sets what is to differ."""
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *ALPHABET, "12"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("1", "2")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if special:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    change(core)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def characters(known: str, unknown: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a few characters; without ``unknown`` others vanish."""
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *([unknown] if unknown else []), *known])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=unknown))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token=unknown)


def words(*known: str) -> PreTrainedTokenizerFast:
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", "[UNK]", *known])}
    core = Tokenizer(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")


@pytest.mark.parametrize(
    ("tokenizer", "answer", "lost"),
    [
        (characters("1+="), "two", "'two'"),
        (characters("1+=tw"), "two", "'o'"),
        (characters("1+=", "<unk>"), "1two1", "'two'"),
        (words("yes", "no"), "maybe no", "'maybe'"),
    ],
)
def test_an_answer_without_tokens_is_refused(tokenizer, answer, lost):
    with pytest.raises(DataError) as caught:
        Encoder(tokenizer, 50).encode(Example("1", answer, source="d.jsonl row 3"))
    assert "d.jsonl row 3" in str(caught.value)
    assert f"no token for {lost}" in str(caught.value)


def test_an_answer_with_tokens_is_learnt():
    assert Encoder(words("yes", "no"), 50).encode(Example("no", " yes\n")).input_ids[-2:] == [3, 1]
    # The unknown token written out is what the answer says.
    assert Encoder(words("yes"), 50).encode(Example("yes", "[UNK]")).input_ids[-2:] == [2, 1]


def test_a_prompt_that_is_not_seen_whole_is_warned_of_once():
    encoder = Encoder(characters("1+="), 50)
    rows = [Example("what1", "1", source=f"row {row}") for row in (1, 2)]
    with pytest.warns(DataWarning, match="row 1: the tokenizer has no token for 'what'") as said:
        list(map(encoder.encode, rows))
    assert len(said) == 1


@pytest.mark.parametrize(("answer", "word"), [("a</s>b", "before its end"), ("<s>a", "begins")])
def test_special_tokens_within_an_answer_are_refused(answer, word):
    with pytest.raises(DataError, match=word):
        Encoder(made(), 50).encode(Example("q", answer))
    assert (
        Encoder(made(), 50).encode(Example("q", "a</s>")).input_ids
        == Encoder(made(), 50).encode(Example("q", "a")).input_ids
    )


def test_an_empty_answer_is_the_end_of_the_text():
    one = Encoder(made(), 50).encode(Example("q", ""))
    assert one.input_ids[one.completion_start :] == [1]


CHANGES = {
    "lower case": lambda core: setattr(core, "normalizer", normalizers.Lowercase()),
    "NFC": lambda core: setattr(core, "normalizer", normalizers.NFC()),
    "NFKC": lambda core: setattr(core, "normalizer", normalizers.NFKC()),
    "strip": lambda core: setattr(core, "normalizer", normalizers.Strip()),
    "rare replacement": lambda core: setattr(core, "normalizer", normalizers.Replace("zqx", "y")),
    "no BOS": lambda core: setattr(core, "post_processor", None),
    "EOS": lambda core: setattr(
        core, "post_processor",
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
    ),
    "space in front": lambda core: setattr(core, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": lambda core: setattr(
        core, "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_the_hash_of_a_tokenizer_covers_its_pipeline(change):
    now, former = accepted_hashes(made())
    assert (tokenizer_hash(made(change)) == now, accepted_hashes(made(change))[1] == former) == (False, True)


def test_the_hash_of_a_tokenizer_outlives_its_file(tmp_path):
    from transformers import AutoTokenizer

    made(CHANGES["NFKC"]).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded("some text", truncation=True, max_length=2, padding="max_length") if loaded.pad_token else None
    assert tokenizer_hash(loaded) == tokenizer_hash(made(CHANGES["NFKC"]))


@pytest.mark.parametrize("change", ["lower case", "NFC", "NFKC"])
def test_a_model_that_writes_its_labels_is_right(change):
    tokenizer = made(CHANGES[change])
    answers = ["cafe\u0301", "\uff11\uff12", "\ufb01nal", "Yes", ""]
    task = Task("t", [], [Example("q", text) for text in answers])
    encoder = Encoder(tokenizer, 100)
    coded = [encoder.encode(one) for one in task.test]
    written = answer_texts(tokenizer, [one.input_ids[one.completion_start :] for one in coded])
    score = score_answers(task, encoder, written)
    assert [one["score"] for one in score.predictions[:4]] == [100.0] * 4
    changed = [one for one in score.predictions if "references_given" in one]
    assert {text for one in changed for text in one["references_given"]} <= set(answers)
    assert changed


def test_a_wrong_answer_stays_wrong_under_a_normaliser():
    encoder = Encoder(made(CHANGES["lower case"]), 100)
    assert score_answers(Task("t", [], [Example("q", "Yes")]), encoder, ["no"]).score == 0.0


def test_references_that_cannot_be_written_whole_are_counted():
    encoder = Encoder(made(), 200)
    task = Task("t", [], [Example("q", "a" * 97), Example("q", "a"), Example("q", "b" * 99, ("b",))], max_new_tokens=64)
    with pytest.warns(DataWarning, match=r"1 of 3 references are longer than max_new_tokens 64.* 98 or more"):
        warn_of_long_references(task, encoder)
    score = score_answers(task, encoder, ["a" * 64, "a", "b"])
    assert (score.references_longer, score.broken_off) == (1, 1)


def test_the_command_line_says_what_is_broken_off(tmp_path, base: Path, capsys):
    from seekr_cl.cli.main import main

    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "one two three four five six"}) + "\n")
    command = ["evaluate", "--model", str(base), "--task", str(data), "--max-new-tokens", "2"]
    assert main([*command, "--output", str(tmp_path / "e")]) == 0
    assert "1 of 1 references are longer than max_new_tokens 2" in capsys.readouterr().err
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert scores["broken_off"]["data"]["references_longer"] == 1

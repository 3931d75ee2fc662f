"""How far a model has moved: KL and plain-text loss against a calculation by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from counted import watch_positions
from tinylm import config_for, constant_task, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from seekr_cl.cli.main import main
from seekr_cl.errors import DataError
from seekr_cl.memory import ReplayMemory
from seekr_cl.runs.drift import Reference, compare_text, drift, noise, prompt_groups, read_text, text_losses
from seekr_cl.training import learn
from seekr_cl.training.probing import Probe, ProbeSet


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks learned one after the other."""
    folder = tmp_path_factory.mktemp("drift")
    save_base(folder / "base")
    config = config_for("replay", folder, replay={"samples": 6}, learning_rate=0.02, num_train_epochs=2)
    for before, name, after in (("base", "yes", "m1"), ("m1", "no", "m2")):
        learn(folder / before, constant_task(name, name), folder / "memory", folder / after, config)
    return folder


def models(learned: Path) -> list:
    return [AutoModelForCausalLM.from_pretrained(learned / name).eval() for name in ("base", "m1", "m2")]


def test_kl_on_old_and_new_prompts(learned: Path) -> None:
    base, previous, model = models(learned)
    memory = ReplayMemory.open(learned / "memory")
    found = drift(model, [Reference("base", base), Reference("previous", previous)], prompt_groups(memory, 4))
    by_key = {(one["against"], one["task"]): one for one in found}
    assert by_key["base", "yes"]["kind"] == "old"
    assert by_key["base", "no"]["kind"] == "new"
    assert all(one["samples"] == 4 for one in found)
    sample = memory.tasks[0].samples[0]
    values = []
    for place in (0, 1, 3, 4):  # four of six, evenly spread
        sample = memory.tasks[0].samples[place]
        with torch.no_grad():
            first, second = (one(sample.ids_L[None]).logits[0].double().log_softmax(-1) for one in (base, model))
        rows = range(sample.completion_start - 1, len(sample.ids_L) - 1)
        values.append(sum(float((first[row].exp() * (first[row] - second[row])).sum()) for row in rows) / len(rows))
    assert by_key["base", "yes"]["kl"] == pytest.approx(sum(values) / 4, rel=1e-3)
    low, high = by_key["base", "yes"]["interval"]
    assert low <= by_key["base", "yes"]["kl"] <= high
    # The new task has moved the model; what a batch does to it is no move.
    assert by_key["base", "no"]["kl"] > by_key["previous", "no"]["kl"] > 0.01
    assert max(by_key["itself", task]["kl"] for task in ("yes", "no")) < 1e-6


def test_loss_on_plain_text(learned: Path, tmp_path: Path) -> None:
    base, _, model = models(learned)
    tokenizer = AutoTokenizer.from_pretrained(learned / "base")
    (tmp_path / "text.txt").write_text("say yes or no? " * 8)
    windows = read_text(tmp_path / "text.txt", tokenizer, 16)
    assert {len(window) for window in windows[:-1]} == {16}
    losses, count = [], 0
    for window in windows:
        with torch.no_grad():
            logits = model(window[None]).logits[0, :-1].double()
        losses.append(float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")))
        count += len(window) - 1
    found = compare_text({"model": text_losses(model, windows), "base": text_losses(base, windows)})
    assert found["model"]["loss"] == pytest.approx(sum(losses) / count, rel=1e-5)
    assert found["base"]["rise"] == pytest.approx(found["model"]["loss"] - found["base"]["loss"])
    assert found["base"]["interval"][0] <= found["base"]["rise"] <= found["base"]["interval"][1]
    assert found["tokens"] == count
    same = compare_text({"model": text_losses(base, windows), "base": text_losses(base, windows)})
    assert (same["base"]["rise"], same["base"]["interval"]) == (0, [0, 0])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "say yes"}) + "\n" for _ in range(5)))
    assert len(read_text(tmp_path / "rows.jsonl", tokenizer, 64)) == 5
    assert len(read_text(tmp_path / "rows.jsonl", tokenizer, 64, 3)) == 3
    for name, content in (("a.txt", b""), ("b.txt", b"\xff\xfe"), ("c.jsonl", b'{"text": 1}\n'), ("d.jsonl", b"{\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="--text"):
            read_text(tmp_path / name, tokenizer, 64)


def test_logits_are_made_of_few_positions_at_a_time(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, window = prompt_groups(ReplayMemory.open(learned / "memory"), 2), torch.arange(4, 16)
    sizes: list[int] = []

    def measured() -> tuple[list[float], float]:
        base, _, model = models(learned)
        for one in (base, model):
            watch_positions(one, sizes)
        return [one["kl"] for one in drift(model, [Reference("base", base)], groups)], text_losses(model, [window])[
            0, 0
        ]

    whole = measured()
    assert max(sizes) == len(window) - 1
    sizes.clear()
    monkeypatch.setattr("seekr_cl.methods.answers.CHUNK_BYTES", 4 * models(learned)[0].config.vocab_size)
    found = measured()
    assert max(sizes) == 1
    assert found[0] == pytest.approx(whole[0], abs=1e-6)
    assert found[1] == pytest.approx(whole[1])


def test_the_command(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("say yes or no? " * 8)
    named = ["--model", learned / "m2", "--base", learned / "base", "--previous", learned / "m1"]
    more = ["--memory", learned / "memory", "--text", tmp_path / "text.txt", "--output", tmp_path / "out", "--json"]
    assert main(["drift", *map(str, [*named, *more])]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "drift.json").read_text())
    assert {one["against"] for one in printed["kl"]} == {"base", "previous", "itself"}
    assert printed["text"]["previous"]["loss"] > 0
    other = save_base(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "text.txt", tmp_path / "out" / "text.txt")
    for words, said in (
        ([], "name the folder of a run, or --model and --base"),
        (["--model", learned / "m2", "--base", other], "nothing to compare on"),
        ([tmp_path / "out"], "run.json: not readable"),
        ([tmp_path / "out", "--model", other], "--model: a run has its own"),
        ([*named, "--memory", tmp_path / "out"], "not a replay memory"),
        ([*named, "--text", tmp_path / "none.txt"], "--text"),
        ([*named, "--text", tmp_path / "text.txt", "--limit", 0], "--limit: 0 must be at least 1"),
    ):
        assert main(["drift", *map(str, words)]) == 2
        assert said in capsys.readouterr().err


def test_a_model_of_no_numbers_has_not_stayed_where_it_was(learned: Path) -> None:
    base, previous, model = models(learned)
    groups = prompt_groups(ReplayMemory.open(learned / "memory"), 2)
    for broken, name in ((model, "model"), (base, "base")):
        weight = next(broken.parameters())
        kept = weight.data.clone()
        weight.data.fill_(float("nan"))
        with pytest.raises(DataError, match=f"task 'yes': the KL is not finite, by the logits of {name};"):
            drift(model, [Reference("previous", previous), Reference("base", base)], groups)
        with pytest.raises(DataError, match="the loss on window 1 of the text is not finite"):
            text_losses(broken, [groups[0].probes[0].ids_L])
        weight.data.copy_(kept)


def test_samples_longer_than_learned_positions(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What a model has no position for is left out by name; with nothing left there is nothing to compare."""
    memory, tokens = learned / "memory", AutoTokenizer.from_pretrained(learned / "base")
    lengths = [len(sample.ids_L) for task in ReplayMemory.open(memory).tasks for sample in task.samples]
    for positions, code in ((max(lengths) + 4, 0), (max(lengths) - 1, 0), (min(lengths) - 1, 2)):
        shape = GPT2Config(vocab_size=len(tokens), n_positions=positions, n_embd=8, n_layer=1, n_head=2)
        folder = tmp_path / str(positions)
        GPT2LMHeadModel(shape).save_pretrained(folder)
        tokens.save_pretrained(folder)
        words = ["--model", folder, "--base", folder, "--memory", memory, "--json", "--limit", 6]
        assert main(["drift", *map(str, words)]) == code
        printed = capsys.readouterr()
        assert ("longer than the context of model" in printed.err) == (positions < max(lengths))
        if code == 0:
            found = json.loads(printed.out)
            left = sum(length > positions for length in lengths)
            assert sum(one["samples"] for one in found["kl"] if one["against"] == "base") == len(lengths) - left
            assert len(found["left_out"]) == (left > 0)


def test_noise_keeps_to_learned_positions() -> None:
    shape = GPT2Config(vocab_size=32, n_positions=12, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(shape).eval()
    # Room for half as much padding, for less, and for none.
    found = [noise(model, Probe(torch.arange(length), [(length - 2, length)])) for length in (8, 10, 12)]
    assert found[:2] == pytest.approx([0, 0], abs=1e-6)
    assert found[2] is None
    whole = ProbeSet("a", "old", "memory", [Probe(torch.arange(12), [(10, 12)])])
    assert [one["against"] for one in drift(model, [Reference("base", model)], [whole])] == ["base"]

"""Conversations are learned, kept, replayed and tested with one rendering and one mask."""

import json
from pathlib import Path

import pytest
import torch
from tinylm import char_tokenizer, config_for, save_base, teach
from transformers import AutoModelForCausalLM, AutoTokenizer
from zygote import run

from seekr_cl.cli.main import main
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation import evaluate_task
from seekr_cl.memory import ReplayMemory
from seekr_cl.tasks import Encoder, Example, Task
from seekr_cl.tasks.chat_template import ChatSettings
from seekr_cl.training import config_from
from seekr_cl.training.fitting import make_encoder

TEMPLATE = (
    "{{ mark or '' }}{% for m in messages %}{% if m.role == 'user' %}u:{% else %}a:{% endif %}{{ m.content }}+"
    "{% if m.role == 'user' %} {% else %}={% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def conversations(name: str, count: int = 8, answer: str = "") -> Task:
    rows = []
    for n in range(count):
        texts = [f"{chr(97 + n)}{name}", answer or f"{n}", "more?", answer or f"{n}{n}"]
        messages = tuple({"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts))
        rows.append(Example("", "", messages=messages, source=f"{name} row {n + 1}"))
    return Task(name, rows, test=rows[:3], max_new_tokens=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_base(tmp_path_factory.mktemp("chat") / "base")
    tokenizer = char_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def spoken(tokenizer, ids, spans) -> list[str]:
    return [tokenizer.decode(ids[begin:end]) for begin, end in spans]


@pytest.mark.parametrize("method", ["seekr", "derpp", "icarl", "gem", "ewc", "onpolicy_replay"])
def test_the_memory_keeps_the_whole_conversation_with_its_mask(method: str, base: Path, tmp_path: Path) -> None:
    tasks = [conversations("q"), conversations("r")]
    teach(base, tmp_path, tasks, config_for(method, tmp_path))
    memory, tokenizer = ReplayMemory.open(tmp_path / "memory"), AutoTokenizer.from_pretrained(base)
    if method == "ewc":
        assert not memory.samples
        return
    for task, kept in zip(tasks, memory.tasks):
        texts = {tokenizer.apply_chat_template(list(e.messages), tokenize=False): e for e in task.train}
        for sample in kept.samples:
            example = texts[tokenizer.decode(sample.ids_L)]
            answers = [turn["content"] + "+=" for turn in example.messages[1::2]]
            assert spoken(tokenizer, sample.ids_L, sample.spans) == answers
            assert sample.completion == example.messages[-1]["content"]
            assert sample.completion_start == sample.spans[-1][0]
            if sample.logits is not None:
                before = [place - 1 for begin, end in sample.spans for place in range(begin, end)]
                assert sample.logits.position_A.tolist() == before


@pytest.mark.parametrize("method", ["lfpt5", "l2p", "sapt"])
def test_methods_of_one_answer_learn_the_last(method: str, base: Path, tmp_path: Path) -> None:
    config = config_for(method, tmp_path)
    assert config.chat.train_on == "last"
    teach(base, tmp_path, [conversations("q", 4), conversations("r", 4)], config)
    with pytest.raises(ConfigError, match=f"train_on: method {method} learns one answer per example"):
        config_for(method, tmp_path, train_on="all")
    with pytest.raises(ConfigError, match="train_on: prompt_boundary: merged learns one answer"):
        config_for("replay", tmp_path, train_on="all", prompt_boundary="merged")


def test_the_loss_is_the_mean_over_every_answers_tokens(base: Path, tmp_path: Path) -> None:
    task = conversations("q", 3)
    config = config_for("seqft", tmp_path, per_device_train_batch_size=3)
    (done,) = teach(base, tmp_path, [task], config)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    losses = []
    for example in task.train:
        text = tokenizer.apply_chat_template(list(example.messages), tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            every = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        # One token a character: after "a:" up to and with "+=".
        first = text.index("a:", 1) + 2
        second = text.index("a:", first) + 2
        for begin, answer in zip((first, second), example.messages[1::2]):
            losses += every[begin - 1 : begin - 1 + len(answer["content"]) + 2].tolist()
    assert done.log[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_single_answer_is_stored_as_it_always_was(base: Path, tmp_path: Path) -> None:
    plain = Task("p", [Example("ab?", "c"), Example("bc?", "d")])
    teach(base, tmp_path, [plain], config_for("replay", tmp_path, replay={"samples": 2}))
    (folder,) = (tmp_path / "memory").rglob("*.safetensors")
    assert b"learnt" not in folder.read_bytes()


def shown(base: Path, tmp_path: Path, **settings) -> list[str]:
    """Labels and prompts of a conversation, and how an answer is scored, under some settings."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ strftime_now('%y') }}" + TEMPLATE
    config = config_for("replay", tmp_path, **settings)
    from seekr_cl.config.chat import set_template

    set_template(tokenizer, config.chat_template)
    encoder = make_encoder(config, AutoModelForCausalLM.from_pretrained(base), tokenizer)
    example = conversations("q", 1).train[0]
    encoded = encoder.encode(example)
    return [*spoken(tokenizer, encoded.input_ids, encoded.spans), *encoder.render(example), str(encoder.chat)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_on", "last"), ("chat_template", "FILE"), ("chat_template_kwargs", {"mark": "="}),
        ("template_date", "2020-02-02"),
    ],
)  # fmt: skip
def test_settings_change_what_is_taught(key: str, value: object, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE.replace("u:", "user:"))
    given = str(file) if value == "FILE" else value
    assert shown(base, tmp_path)[:-1] != shown(base, tmp_path, **{key: given})[:-1]


def test_a_template_of_ones_own_is_written_with_the_model(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE.replace("u:", "user:"))
    teach(base, tmp_path, [conversations("q", 4)], config_for("seqft", tmp_path, chat_template=str(file)))
    assert AutoTokenizer.from_pretrained(tmp_path / "m1").chat_template == file.read_text()
    for bad, reason in {"none.jinja": "No such file", "empty.jinja": "is empty"}.items():
        (tmp_path / "empty.jinja").write_text(" ")
        config = config_for("seqft", tmp_path, chat_template=str(tmp_path / bad))
        with pytest.raises(ConfigError, match=f"chat_template: .*{reason}.*name a Jinja file"):
            teach(base, tmp_path / f"{bad}-run", [conversations("q", 4)], config)


@pytest.mark.parametrize("strip", [True, False])
def test_the_score_is_of_the_answer_without_its_thinking(strip: bool, base: Path) -> None:
    from seekr_cl.evaluation.evaluate import score_answers

    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = Encoder(tokenizer, 60, chat=ChatSettings(strip_thinking=strip))
    task = conversations("q", 3)
    answers = [f"<think>hm</think>{example.messages[-1]['content']}" for example in task.test]
    score = score_answers(task, encoder, answers)
    assert score.score == (100.0 if strip else 0.0)
    assert [row.get("scored") for row in score.predictions] == (["00", "11", "22"] if strip else [None] * 3)
    plain = Task("p", [], test=[Example("a", "<think>hm</think>b")])
    assert score_answers(plain, encoder, ["<think>hm</think>b"]).score == 100.0


def test_answers_end_where_the_templates_turns_end(base: Path) -> None:
    """The end of a turn is a token of its own that neither tokenizer nor generation settings call an end."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["="]})
    tokenizer.chat_template = TEMPLATE.replace("}}+", "}}")
    task, encoder = conversations("q", 1), Encoder(tokenizer, 60)
    bias = torch.full((len(tokenizer),), -100.0)
    order = iter([tokenizer.convert_tokens_to_ids(char) for char in "00=a"])

    def force(module, given, output):
        output.logits[..., -1, :] = bias.index_fill(0, torch.tensor([next(order)]), 100.0)

    model.register_forward_hook(force)
    score = evaluate_task(model, tokenizer, task, encoder, 1)
    assert [row["prediction"] for row in score.predictions] == ["00"]


def test_inspect_shows_what_is_taught(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(base).save_pretrained(only)
    file = tmp_path / "d.jsonl"
    rows = [{"messages": list(one.messages)} for one in conversations("q", 4).train]
    rows[1] = {"prompt": "ab\x1b[31m?", "completion": "c"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["inspect", "--model", str(only), "--task", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(only)
    assert [one["read_as"] for one in found] == ["messages", "prompt-completion", "messages"]
    first = found[0]
    assert first["text"] == tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    assert [first["text"][begin:end] for begin, end in first["learnt"]] == ["0+=", "00+="]
    assert first["ids"] == tokenizer(first["text"], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([label for label in first["labels"] if label != -100]) == "0+=00+="
    assert all(label in (-100, one) for label, one in zip(first["labels"], first["ids"], strict=True))
    assert found[1]["text"] == "ab\x1b[31m?c</s>"
    words = ["inspect", "--model", str(only), "--task", str(file), "-n", "2"]
    assert main([*words, "train_on=last", "max_length=12"]) == 0
    said = capsys.readouterr().out
    assert "a:[00+=]" in said
    assert "[0+=]" not in said
    assert "truncated on the left" in said
    assert "\x1b" not in said
    assert "ab⟨U+001B⟩[31m?[c</s>]" in said


def test_inspect_refuses_in_one_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}))
    words = ["inspect", "--model", str(base), "--task", str(file)]
    for more in (["-n", "0"], ["train_on=first"], ["nonsense=1"], ["template_date=today"]):
        assert main([*words, *more]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["inspect", "--model", str(tmp_path), "--task", str(file)]) == 2
    assert "tokenizer cannot be loaded" in capsys.readouterr().err


def test_the_same_day_whatever_the_clock_says(base: Path, tmp_path: Path) -> None:
    """A process whose clock stands on another day teaches the same text."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + TEMPLATE
    tokenizer.save_pretrained(tmp_path / "dated")
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"messages": list(conversations("q", 1).train[0].messages)}))
    code = (
        "import sys, datetime as dt, transformers.utils.chat_template_utils as c\n"
        "class Later(dt.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return dt.datetime(2031, 5, 5)\n"
        "c.datetime = Later\n"
        "from seekr_cl.cli.main import main; sys.exit(main())"
    )
    words = ["inspect", "--model", str(tmp_path / "dated"), "--task", str(file), "--json"]
    later = run("zygote:code", code, words)
    assert later.code == 0, later.err
    (one,) = json.loads(later.out)
    assert one["text"].startswith("2024-07-26 u:")
    config = config_from({"use_cpu": True, "template_date": "2025-01-01"}, str(tmp_path))
    assert config.chat.date == "2025-01-01"

"""Data as people keep it: every format is recognized by name, and no key of a record is lost without a word."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from seekr_cl import Task
from seekr_cl.errors import ConfigError, DataError
from seekr_cl.tasks.formats import ALPACA, FORMATS
from seekr_cl.tasks.keys import DataWarning

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
PAIR = {"prompt": "q", "completion": "a"}


def load(folder: Path, rows: Any, **more: Any) -> Task:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Task.load(path, **more)


READ = {
    "pair": (PAIR, "prompt-completion", ("q", "a"), None),
    "answer": ({"prompt": "q", "answer": "a"}, "prompt-answer", ("q", "a"), None),
    "messages": ({"messages": [USER, BOT]}, "messages", None, [USER, BOT]),
    "system beside messages": ({"messages": [USER, BOT], "system": "s"}, "messages", None, [SYSTEM, USER, BOT]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        "sharegpt", None, [SYSTEM, USER, BOT],
    ),
    "sharegpt with roles": ({"conversations": [USER, BOT]}, "sharegpt", None, [USER, BOT]),
    "alpaca": (
        {"instruction": "q", "input": "", "output": "a"}, "alpaca", (ALPACA.format(instruction="q"), "a"), None,
    ),
    "alpaca beside its rendering": (
        {"instruction": "q", "input": None, "output": "a", "text": "q a"},
        "alpaca", (ALPACA.format(instruction="q"), "a"), None,
    ),
    "text": ({"text": "once upon"}, "text", ("", "once upon"), None),
    "messages as prompt": (
        {"prompt": [USER, BOT, USER], "completion": [BOT]},
        "conversational prompt-completion", None, [USER, {**BOT, "weight": 0}, USER, BOT],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::seekr_cl.tasks.keys.DataWarning")
@pytest.mark.parametrize(("row", "name", "pair", "messages"), READ.values(), ids=list(READ))
def test_formats_are_recognised_and_named(row, name, pair, messages, tmp_path):
    task = load(tmp_path, [row])
    one = task.train[0]
    assert (one.read_as, task.formats) == (name, [name])
    assert name in FORMATS
    assert (pair is None) == (one.messages is not None)
    assert pair is None or (one.prompt, one.completion) == pair
    assert messages is None or list(one.messages) == messages


def test_an_alpaca_input_stands_in_the_prompt(tmp_path):
    one = load(tmp_path, [{"instruction": "Translate", "input": "{Hello}", "output": "Bonjour"}]).train[0]
    assert "### Instruction:\nTranslate\n\n### Input:\n{Hello}\n\n### Response:\n" in one.prompt
    assert one.completion == "Bonjour"


LOST = {
    "weight": ({**PAIR, "weight": 0.5}, "'weight'"),
    "system": ({**PAIR, "system": "French"}, "'system'"),
    "tools": ({**PAIR, "tools": [{"name": "f"}]}, "'tools'"),
    "template settings": ({**PAIR, "chat_template_kwargs": {"a": 1}}, "'chat_template_kwargs'"),
    "images": ({"messages": [USER, BOT], "images": ["a.png"]}, "'images'"),
    "label": ({**PAIR, "label": False}, "'label'"),
    "train": ({**PAIR, "train": False}, "'train'"),
    "loss mask": ({"messages": [USER, BOT], "loss_mask": [0, 1]}, "'loss_mask'"),
    "turn's mask": ({"messages": [USER, {**BOT, "train": False}]}, "message 2: 'train'"),
    "turn's image": ({"messages": [{**USER, "images": ["a.png"]}, BOT]}, "message 1: 'images'"),
    "sharegpt turn": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "loss": False}]}, "'loss'",
    ),
    "history": ({"instruction": "q", "output": "a", "history": [["x", "y"]]}, "'history'"),
    "slip": ({**PAIR, "refrences": ["b"]}, "did you mean 'references'?"),
    "slip in a turn": ({"messages": [USER, {**BOT, "reasoning_contnet": "x"}]}, "did you mean 'reasoning_content'?"),
    "two systems": ({"messages": [SYSTEM, USER, BOT], "system": "t"}, "'system'"),
    "unknown speaker": ({"conversations": [{"from": "humann", "value": "q"}]}, "did you mean 'human'?"),
    "two formats": ({**PAIR, "instruction": "x"}, "'instruction'"),
    "half messages": ({"prompt": [USER], "completion": "a"}, "both messages or both strings"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "wanted"), LOST.values(), ids=list(LOST))
def test_a_key_that_would_be_lost_is_refused_by_name(row, wanted, tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path, [row])
    assert "row 1" in str(caught.value)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("more", [{"weight": 1}, {"train": True}, {"system": ""}, {"tools": []}, {"images": None}])
def test_a_key_that_changes_nothing_is_accepted(more, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        assert load(tmp_path, [{**PAIR, **more}]).train[0].completion == "a"


def test_harmless_columns_are_named_once(tmp_path):
    with pytest.warns(DataWarning) as said:
        load(tmp_path, [{**PAIR, "id": 1}, {**PAIR, "source": "web", "id": 2}])
    assert [str(one.message).partition("data.jsonl")[2] for one in said] == [": not used: 'id', 'source'"]


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "user", "content": "x", "content": "y"}, {"role": "assistant", "content": "a"}]}',
        '{"prompt": "q", "completion": "a", "references": ["a"], "references": ["b"]}',
        '[{"prompt": "q", "completion": "a"}, {"prompt": "q", "answer": "a", "meta": {"k": 1, "k": 2}}]',
    ],
)
def test_a_key_twice_is_refused_at_any_depth(text, tmp_path):
    for suffix in ("json", "jsonl"):
        if suffix == "jsonl" and text.startswith("["):
            continue
        path = tmp_path / f"data.{suffix}"
        path.write_text(text)
        row = 2 if text.startswith("[") else 1
        with pytest.raises(DataError, match=rf"row {row}: key '(content|references|k)' appears twice"):
            Task.load(path)


def test_columns_are_mapped_by_name_and_by_template(tmp_path):
    rows = [{"question": "1+1", "answer_text": "2", "n": 3, "id": "x"}]
    columns = {"prompt": "Q{n}: {question}\n{{}} ", "completion": "answer_text"}
    with pytest.warns(DataWarning, match="not used: 'id'"):
        one = load(tmp_path, rows, columns=columns).train[0]
    assert (one.prompt, one.completion) == ("Q3: 1+1\n{} ", "2")


@pytest.mark.parametrize(
    ("columns", "kind", "wanted"),
    [
        ({"prompt": "qestion", "completion": "a"}, DataError, "did you mean 'question'?"),
        ({"prompt": "x {qestion}", "completion": "a"}, DataError, "did you mean 'question'?"),
        ({"promt": "question", "completion": "a"}, ConfigError, "did you mean 'prompt'?"),
        ({"prompt": "{question", "completion": "a"}, ConfigError, "is not a template"),
        ({"prompt": "{question.x!r}", "completion": "a"}, ConfigError, "is not a template"),
        ({"prompt": "{f}", "completion": "a"}, DataError, "a number (0.1)"),
        ({"prompt": "{none}", "completion": "a"}, DataError, "null"),
        (["prompt"], ConfigError, "must map"),
    ],
)
def test_columns_that_cannot_be_read(columns, kind, wanted, tmp_path):
    with pytest.raises(kind) as caught:
        load(tmp_path, [{"question": "q", "a": "a", "f": 0.1, "none": None}], columns=columns)
    assert wanted in str(caught.value)


BAD_CSV = {
    "backslash": '"say \\"hi\\"",b', "goes on": '"Hello" she said,b', "space": '"a", "b"', "space first": ' "a",b',
    "open": '"a,b', "space behind": '"a" ,b', "long": "a,b,c",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_CSV.values(), ids=list(BAD_CSV))
def test_csv_that_is_not_well_formed_names_its_line(line, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(f'prompt,completion\n"two\nlines",fine\n{line}\n')
    with pytest.raises(DataError, match="line 4"):
        Task.load(path)


GOOD_CSV = {
    "quotes": ('"say ""hi""",b', 'say "hi"'), "quote after a space": ('" ""a""",b', ' "a"'),
    "inch": ('5" pipe,b', '5" pipe'),
    "newline": ('"a\r\nb",b', "a\r\nb"), "not a number": ("007,b", "007"), "not null": ("NA,b", "NA"),
    "long": (f'"{"x" * 200_000}",b', "x" * 200_000),
}  # fmt: skip


@pytest.mark.parametrize(("line", "prompt"), GOOD_CSV.values(), ids=list(GOOD_CSV))
def test_csv_text_is_what_is_written(line, prompt, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(f"prompt,completion\n{line}\n".encode())
    assert Task.load(path).train[0].prompt == prompt


MISLED = {
    "object": ([{"prompt": "q", "completion": {"name": "Ada"}}], "JSON in a string"),
    "column-wise": ({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "x", "1": "y"}}, "column-wise"),
    "lists": ({"prompt": ["a", "b"], "completion": ["x", "y"]}, "column-wise"),
    "split": ({"columns": ["prompt"], "index": [0], "data": [["a"]]}, "orient='records'"),
    "wrapped": ({"data": [{"prompt": "q", "completion": "a"}]}, "'data'"),
}


@pytest.mark.parametrize(("content", "wanted"), MISLED.values(), ids=list(MISLED))
def test_advice_leads_somewhere(content, wanted, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        Task.load(path)
    assert wanted in str(caught.value)
    assert "quotes around it" not in str(caught.value)


def test_other_separators_are_named(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("prompt;completion\na;b\n")
    with pytest.raises(DataError, match="separated by ';'"):
        Task.load(path)


def test_folders_of_save_to_disk_are_read(tmp_path):
    from datasets import Dataset, DatasetDict

    split = Dataset.from_list([PAIR])
    DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "both"))
    split.save_to_disk(str(tmp_path / "one"))
    both, one = Task.load(tmp_path / "both"), Task.load(tmp_path / "one")
    assert [len(both.train), len(both.test), len(one.train)] == [1, 1, 1]
    assert one.train[0].completion == "a"


def test_nulls_that_parquet_puts_into_turns_are_no_keys(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    turns = [[USER, BOT], [USER, {**BOT, "weight": 0}, USER, BOT]]
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pa.table({"messages": turns}), path)
    assert [list(one.messages) for one in Task.load(path).train] == turns


def test_rows_in_python_are_left_as_they_are():
    import copy

    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"default": None}}}}}
    rows = [{"messages": [USER, BOT], "tools": [tool]}]
    before = copy.deepcopy(rows)
    assert list(Task.load(rows, name="t").train[0].tools) == before[0]["tools"]
    assert rows == before


def test_columns_and_empty_answers_in_a_stream(tmp_path):
    from seekr_cl.tasks import StreamSpec

    (tmp_path / "d.jsonl").write_text('{"q": "a", "a": ""}\n')
    (tmp_path / "s.yaml").write_text("columns: {prompt: q, completion: a}\nallow_empty: true\ntasks: [d.jsonl]\n")
    spec = StreamSpec.from_yaml(tmp_path / "s.yaml")
    assert [(one.prompt, one.completion) for one in spec.load_tasks(require_test=False)[0].train] == [("a", "")]
    (tmp_path / "s.yaml").write_text("tasks: [{data: d.jsonl, columns: {promt: q}}]\n")
    with pytest.raises(ConfigError, match=r"task 1: columns: unknown key 'promt'.*'prompt'"):
        StreamSpec.from_yaml(tmp_path / "s.yaml")

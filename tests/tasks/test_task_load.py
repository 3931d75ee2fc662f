import json
import os

import pytest

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.tasks import Example, Task

ROWS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "", "answer": "x\u2028y"},
    {"prompt": "when", "answer": "2020-01-01"},
]
PAIRS = [(row["prompt"], row["answer"]) for row in ROWS]


def pairs(examples):
    return [(example.prompt, example.completion) for example in examples]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "lines_in_json", "bom"])
def test_every_kind_of_file_gives_the_text_that_was_written(kind, write, tmp_path):
    if kind == "parquet":
        path = parquet(tmp_path / "a.parquet", {key: [row[key] for row in ROWS] for key in ("prompt", "answer")})
    else:
        cells = "prompt,answer\n" + "".join(f'"{p}","{a}"\n' for p, a in PAIRS)
        path = {
            "json": lambda: write("a.json", ROWS),
            "jsonl": lambda: write("a.jsonl", lines(ROWS) + "\n"),
            "lines_in_json": lambda: write("a.json", lines(ROWS)),
            "csv": lambda: write("a.csv", cells),
            "bom": lambda: write("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        }[kind]()
    task = Task.load(path)
    assert pairs(task.train) == PAIRS
    assert (task.name, task.test, task.eval) == ("a", [], [])
    assert task.train[2].source == f"{path} row 3"
    assert os.listdir(tmp_path) == [path.name]  # no cache is left beside the user's file


def test_csv_keeps_text_that_looks_like_something_else(write):
    path = write("a.csv", 'prompt,answer,references\n007,NA,"[""N/A""]"\n1.50,true,\n')
    task = Task.load(path)
    assert pairs(task.train) == [("007", "NA"), ("1.50", "true")]
    assert [example.references for example in task.train] == [("N/A",), ()]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_an_edited_file_is_read_again_even_with_the_same_size_and_time(suffix, write):
    text = {"json": '[{"prompt": "a", "answer": "%s"}]', "csv": "prompt,answer\na,%s\n"}[suffix]
    path = write(f"a.{suffix}", text % "old")
    stamp = path.stat()
    before = Task.load(path)
    write(path.name, text % "new")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = Task.load(path)
    assert (before.train[0].completion, after.train[0].completion) == ("old", "new")
    assert before.fingerprint() != after.fingerprint()


def test_trace_folder_with_references(write, tmp_path):
    write("t/train.json", ROWS)
    write("t/dev.jsonl", lines(ROWS[:1]))
    write("t/test.csv", "prompt,completion\na,b\nc,d\n")
    write("t/test_references.json", [["b", "B"], ["d"]])
    write("t/test_subtasks.json", ["x"])
    task = Task.load(tmp_path / "t", require_test=True, limit={"train": 2, "test": 1})
    assert (task.name, len(task.train), len(task.eval)) == ("t", 2, 1)
    assert task.test == [Example("a", "b", ("b", "B"), None, f"{tmp_path / 't' / 'test.csv'} row 1")]
    assert task.train_source == str(tmp_path / "t" / "train.json")


def test_mapping_replaces_one_split_of_a_folder(write, tmp_path):
    for split in ("train", "test"):
        write(f"t/{split}.json", ROWS)
    other = write("other.jsonl", lines([{"prompt": "p", "completion": "q"}]))
    task = Task.load({"train": tmp_path / "t", "test": other})
    assert (task.name, pairs(task.test), pairs(task.train)) == ("t", [("p", "q")], PAIRS)


def test_messages(write):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "name": "bot"}]
    task = Task.load(write("a.json", [{"messages": turns, "references": ["hu"]}, {"prompt": "a", "completion": "b"}]))
    assert task.train[0].messages == tuple(turns)
    assert (task.train[0].references, task.train[1].messages) == (("hu",), None)


USER, BOT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}
OK = {"prompt": "p", "answer": "a"}
BAD = {
    "missing file": ("tran.json", None, ["tran.json: no such file", "did you mean 'train.json'?"]),
    "missing folder": ("no/where.json", None, ["where.json", "does not exist either"]),
    "empty file": ("a.json", " \n", ["a.json", "empty"]),
    "empty list": ("a.json", [], ["a.json", "no rows"]),
    "empty jsonl": ("a.jsonl", "", ["a.jsonl", "empty"]),
    "csv header only": ("a.csv", "prompt,answer\n", ["a.csv", "no rows"]),
    "unknown suffix": ("a.txt", "x", ["a.txt", "'.txt'", ".jsonl"]),
    "broken json": ("a.json", '[\n{"prompt": "p",\n "answer" "a"}]', ["a.json line 3", "invalid JSON"]),
    "broken jsonl": ("a.jsonl", lines([OK, OK]) + "\n{oops}\n", ["a.jsonl line 4", "invalid JSON"]),
    "latin-1": ("a.json", b'[\n{"prompt": "caf\xe9", "answer": "a"}]', ["a.json line 2", "byte 17", "0xe9", "UTF-8"]),
    "bom, latin-1": ("a.jsonl", b'\xef\xbb\xbf{"a": 1}\n\xff', ["a.jsonl line 2", "byte 12 (0xff)"]),
    "utf-16": ("a.csv", "prompt,answer\np,a\n".encode("utf-16"), ["a.csv line 1", "byte 0", "UTF-8"]),
    "scalar": ("a.json", "7", ["a.json", "must be a list"]),
    "number": ("a.json", [OK, {"prompt": "p", "answer": 7}], ["a.json row 2", "'answer'", "a number (7)", "quotes"]),
    "true": ("a.json", [OK, {"prompt": True, "answer": "a"}], ["row 2", "'prompt'", "true/false (true)"]),
    "list": ("a.jsonl", lines([OK, OK, {"prompt": "p", "answer": ["a"]}]), ["a.jsonl row 3", "'answer'", "a list"]),
    "no answer": ("a.json", [OK, {"prompt": "p", "anwser": "a"}], ["row 2", "keys found: prompt, anwser", "'answer'?"]),
    "no prompt": ("a.csv", "question,answer\np,a\n", ["a.csv row 1", "no 'prompt'", "{prompt, completion}"]),
    "null": ("a.json", [{"prompt": "p", "answer": None}], ["row 1", "no 'completion' or 'answer'", "null"]),
    "no object": ("a.json", [OK, "text"], ["row 2", "a string"]),
    "two answers": ("a.json", [{**OK, "completion": "c"}], ["row 1", "both 'completion' and 'answer'"]),
    "key twice": ("a.json", '[{"prompt": "p", "answer": "a", "prompt": "q"}]', ["row 1", "'prompt'", "twice"]),
    "column twice": ("a.csv", "prompt,answer,answer\np,a,b\n", ["line 1", "'answer'", "twice"]),
    "empty answer": ("a.json", [OK, {"prompt": "p", "answer": ""}], ["row 2", "empty", "allow_empty"]),
    "half a pair": ("a.json", '[{"prompt": "x\\ud800", "answer": "a"}]', ["row 1", "'prompt'", "character 2"]),
    "references": ("a.json", [{**OK, "references": "a"}], ["row 1", "'references'", "list"]),
    "reference 2": ("a.json", [{**OK, "references": ["a", 2]}], ["row 1", "references 2", "a number (2)"]),
    "long csv row": ("a.csv", "prompt,answer\np,a\np,a,x\n", ["a.csv", "line 3"]),
    "all csv rows long": ("a.csv", "prompt,answer\np,a,x\np,a,x\n", ["a.csv", "more fields"]),
    "open quote": ("a.csv", 'prompt,answer\n"p,a\n', ["a.csv", "EOF"]),
    "no parquet": ("a.parquet", "nope", ["a.parquet", "parquet"]),
    "user last": ("a.json", [{"messages": [BOT, USER]}], ["row 1", "last message", "not 'user'"]),
    "no messages": ("a.json", [{"messages": []}], ["row 1", "last message", "empty"]),
    "one message": ("a.json", [{"messages": [BOT]}], ["row 1", "nothing comes before"]),
    "no content": ("a.json", [{"messages": [{"role": "user"}, BOT]}], ["row 1", "message 1", "'content'"]),
    "parts": ("a.json", [{"messages": [USER, {**BOT, "content": [{}]}]}], ["message 2 content", "a list"]),
    "both kinds": ("a.json", [{**OK, "messages": [USER, BOT]}], ["row 1", "both 'messages' and 'prompt'"]),
    "bad hub name": ("hub:name", None, ["hub:name", "hub:owner/name"]),
}


@pytest.mark.parametrize(("name", "content", "wanted"), BAD.values(), ids=list(BAD))
def test_bad_input_is_named_in_one_line(name, content, wanted, write, tmp_path):
    write("train.json", [OK])
    path = name if name.startswith("hub:") else tmp_path / name if content is None else write(name, content)
    with pytest.raises(DataError) as caught:
        Task.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in wanted if part not in message] == [], message


def test_parquet_errors_name_the_row(tmp_path):
    import pyarrow as pa

    with pytest.raises(DataError, match=r"n\.parquet row 1: 'answer' must be a string, not a number \(7\)"):
        Task.load(parquet(tmp_path / "n.parquet", {"prompt": ["p", "q"], "answer": [7, 8]}))
    broken = pa.array([b"fine", b"\xff"], pa.binary()).view(pa.string())
    with pytest.raises(DataError, match=r"u\.parquet row 2: text is not UTF-8"):
        Task.load(parquet(tmp_path / "u.parquet", {"prompt": ["p", "q"], "answer": broken}))


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"train.json": [OK]}, "no test split"),
        ({"test.json": [OK]}, r"no train split \(holds test.json\)"),
        ({"train.json": [OK], "train.csv": "prompt,answer\na,b\n"}, r"more than once \(train.json, train.csv\)"),
        ({"train.json": [OK], "eval.json": [OK], "dev.json": [OK]}, "eval split is there more than once"),
        ({"train.json": [OK], "test.json": [OK], "test_references.json": [["a"], ["b"]]}, "2 rows for the 1 rows"),
        ({"train.json": [OK], "test.json": [OK], "test_references.json": ["a"]}, "test_references.json row 1"),
        ({"train.json": [OK], "test.json": [OK], "test_references.json": [[]]}, "references.json row 1.*empty"),
    ],
)
def test_bad_folders(files, wanted, write, tmp_path):
    for name, content in files.items():
        write(f"t/{name}", content)
    with pytest.raises(DataError, match=wanted):
        Task.load(tmp_path / "t", require_test=True)


def test_allow_empty(write):
    path = write("a.json", [{"prompt": "p", "answer": ""}])
    assert Task.load(path, allow_empty=True).train[0].completion == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0}, {"epochs": True}, {"epochs": float("nan")}, {"epochs": "2"}, {"max_new_tokens": 0},
        {"max_new_tokens": 1.5}, {"limit": {"tran": 1}}, {"limit": {"train": 0}}, {"limit": 5}, {"metric": ""},
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, write):
    with pytest.raises(ConfigError):
        Task.load(write("a.json", [OK]), **settings)


def test_the_hub_offline_says_what_to_do(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"^hub:nobody/nothing:c: cannot be fetched.*connection"):
        Task.load("hub:nobody/nothing:c")


def test_the_hub_gives_splits(monkeypatch):
    import datasets

    table = datasets.Dataset.from_list([OK, {"prompt": "q", "answer": "b"}])
    asked = []

    def answer(*args):
        asked.append(args)
        return datasets.DatasetDict(train=table, validation=table, test=table)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    task = Task.load("hub:owner/name:cfg", limit={"eval": 1}, require_test=True)
    assert asked == [("owner/name", "cfg")]
    assert (task.name, pairs(task.train), len(task.eval)) == ("name-cfg", [("p", "a"), ("q", "b")], 1)
    assert task.eval[0].source == "hub:owner/name:cfg validation row 1"


def test_real_trace_rows_are_unchanged(shared):
    folder = shared / "data" / "trace" / "C-STANCE"
    task = Task.load(folder, require_test=True)
    for split in ("train", "eval", "test"):
        raw = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        assert pairs(getattr(task, split)) == [(row["prompt"], row["answer"]) for row in raw]
    assert "态度" in task.train[0].prompt
    tydiqa = Task.load(shared / "data" / "general" / "tydiqa")
    raw = json.loads((shared / "data" / "general" / "tydiqa" / "test_references.json").read_text(encoding="utf-8"))
    assert [list(example.references) for example in tydiqa.test] == raw

import pytest

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.tasks import Stream, StreamSpec, Task

ROWS = [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "b"}]


@pytest.fixture
def files(write):
    for task in ("one", "two"):
        for split in ("train", "eval", "test"):
            write(f"data/{task}/{split}.json", ROWS)
    write("data/three.json", ROWS)


def test_a_stream(files, write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")  # paths are relative to the YAML file, not to where one stands
    monkeypatch.setenv("WHERE", "data")
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    path = write(
        "stream.yaml",
        """
        model: ${NOT_SET:-some/model}
        nested: {list: ["${WHERE}", 3], empty: "${EMPTY:-x}"}
        tasks:
          - ${WHERE}/two
          - {name: first, data: data/one, metric: rouge, epochs: 0.5, max_new_tokens: 9, limit: {train: 1}}
          - data: data/three.json
            test: data/one/test.json
        """,
    )
    spec = StreamSpec.from_yaml(path)
    assert spec.settings == {"model": "some/model", "nested": {"list": ["data", 3], "empty": "x"}}
    stream = Stream.from_yaml(path)
    assert (stream.names, len(stream)) == (["two", "first", "three"], 3)
    two, first, three = stream
    assert (first.metric, first.epochs, first.max_new_tokens, len(first.train)) == ("rouge", 0.5, 9, 1)
    assert (two.metric, two.epochs, len(two.train), len(two.eval)) == ("exact_match", None, 2, 2)
    assert (three.test[0].source, three.eval) == (f"{tmp_path / 'data/one/test.json'} row 1", [])
    assert [task.name for task in spec.load_tasks()] == stream.names


def test_test_splits_can_be_required_or_not(files, write):
    path = write("s.yaml", "tasks: [data/three.json]")
    with pytest.raises(DataError, match=r"three\.json.*no test split"):
        StreamSpec.from_yaml(path).load_tasks()
    assert StreamSpec.from_yaml(path).load_tasks(require_test=False)[0].test == []


def test_hub_names_and_absolute_paths_are_left_alone(write, tmp_path):
    path = write("s.yaml", f"tasks: ['hub:o/n:c', {tmp_path}/x]")
    assert [spec.data for spec in StreamSpec.from_yaml(path).tasks] == ["hub:o/n:c", f"{tmp_path}/x"]


BAD = {
    "unknown key": ("tasks: [a, {data: b, epoch: 2}]", ["task 2", "'epoch'", "did you mean 'epochs'?"]),
    "unknown key, named": ("tasks: [{name: bee, data: b, metrics: x}]", ["bee", "did you mean 'metric'?"]),
    "no data": ("tasks: [{name: a}]", ["task 1", "no 'data'"]),
    "same name": ("tasks: [x/a, y/a]", ["task 2 'a'", "task 1 'a'", "'name'"]),
    "same folder name": ("tasks: [{name: a b, data: x}, {name: A-b, data: y}]", ["task 2 'A-b'", "task 1 'a b'"]),
    "no tasks": ("model: m", ["'tasks' is missing"]),
    "misspelt tasks": ("task: [a]", ["did you mean 'task'?"]),
    "empty tasks": ("tasks: []", ["'tasks' is empty"]),
    "tasks no list": ("tasks: a", ["'tasks' must be a list"]),
    "entry no mapping": ("tasks: [a, 7]", ["task 2", "7"]),
    "name no text": ("tasks: [{name: 7, data: a}]", ["task 1", "name must be text", "quotes"]),
    "name no folder": ("tasks: [{name: '..', data: a}]", ["task 1", "folder name"]),
    "epochs": ("tasks: [{data: a, epochs: none}]", ["task 1", "epochs", "'none'"]),
    "too long": (f"tasks: [{{name: a, data: {'d' * 5000}}}]", ["task 1 (a)", "data", "dddd...: cannot be a path"]),
    "limit": ("tasks: [{data: a, limit: {tests: 5}}]", ["task 1", "'tests'", "did you mean 'test'?"]),
    "limit number": ("tasks: [{data: a, limit: {test: -5}}]", ["task 1: limit", "test", "-5"]),
    "unset in task": ("tasks: [{data: 'x/${SEEKR_UNSET}'}]", ["task 1", "'data'", "SEEKR_UNSET"]),
    "unset in setting": ("tasks: [a]\nm: {k: ['${SEEKR_UNSET}']}", ["key 'm'.k item 1", "SEEKR_UNSET"]),
    "broken": ("tasks:\n  - a\n b: [", ["line 3", "invalid YAML"]),
    "key twice": ("tasks: [a]\nmodel: x\nmodel: y", ["line 3", "'model' twice"]),
    "code": ("tasks: !!python/object/apply:os.getcwd []", ["line 1", "invalid YAML"]),
    "list": ("- a", ["top level", "'tasks:'"]),
    "empty": ("", ["top level"]),
    "latin-1": (b"tasks: [\xe9]", ["byte 8", "UTF-8"]),
}


@pytest.mark.parametrize(("content", "wanted"), BAD.values(), ids=list(BAD))
def test_bad_files_are_named_in_one_line(content, wanted, write, monkeypatch):
    monkeypatch.delenv("SEEKR_UNSET", raising=False)
    path = write("s.yaml", content)
    with pytest.raises(ConfigError) as caught:
        StreamSpec.from_yaml(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert [part for part in wanted if part not in message] == [], message


def test_missing_file(write, tmp_path):
    write("stream.yaml", "tasks: [a]")
    with pytest.raises(ConfigError, match=r"did you mean 'stream\.yaml'"):
        StreamSpec.from_yaml(tmp_path / "steam.yaml")


def test_a_stream_from_code():
    tasks = [Task("a", []), Task("b", [])]
    assert Stream(tasks).names == ["a", "b"]
    for bad in ([], [Task("a b", []), Task("A/b", [])]):
        with pytest.raises(ConfigError):
            Stream(bad)


def test_nearest():
    assert nearest("Epoch", ["epochs", "eval"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs"]) == nearest("x", []) == ""

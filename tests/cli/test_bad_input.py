"""Everything a user may get wrong: one line that names the place and the fix, exit code 2, nothing touched.

And what is strange but allowed: it runs, and says in one line what will have no effect.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_world import World, fingerprint, save_model, tokenizer_of, write, write_stream, write_task


@dataclass(frozen=True)
class Case:
    """A command that ought to be refused, or to be warned about.

    Attributes:
        name: the test's.
        says: what the line must hold: the place and the fix.
        arguments: makes what the command needs and gives its words.
        runs: it is only strange; with ``says`` empty not even that.
        whole: started with ``python -m seekr_cl``, imports and all.
    """

    name: str
    says: tuple[str, ...]
    arguments: Callable[[World, Path], list[object]]
    runs: bool = False
    whole: bool = False


GOOD = {"prompt": "a=", "answer": "aa"}


def data(name: str, content: object, *says: str) -> Case:
    """A data file that cannot be learnt from; the message names it."""

    def arguments(world: World, folder: Path) -> list[object]:
        return world.learn(folder, task=write(folder / "data.json", content))

    return Case(name, ("data.json", *says), arguments)


def setting(pair: str, *says: str, runs: bool = False) -> Case:
    """A setting on the command line."""
    return Case(pair, says, lambda world, folder: world.learn(folder, *pair.split()), runs)


def learn(name: str, *says: str, runs: bool = False, whole: bool = False, **instead: object) -> Case:
    """Other options; a function makes what it needs of the world and the folder."""

    def arguments(world: World, folder: Path) -> list[object]:
        made = {key: value(world, folder) if callable(value) else value for key, value in instead.items()}
        return world.learn(folder, **made)

    return Case(name, says, arguments, runs, whole)


def stream(name: str, *says: str, **settings: object) -> Case:
    """A stream with other settings."""

    def arguments(world: World, folder: Path) -> list[object]:
        made = {key: value(world, folder) if callable(value) else value for key, value in settings.items()}
        return ["run", world.stream_with(folder, **made), "--output", folder / "run"]

    return Case(name, says, arguments)


def memory(name: str, change: Callable[[Path], object], *says: str) -> Case:
    """A damaged copy of the memory, to be learnt on with the right model."""

    def arguments(world: World, folder: Path) -> list[object]:
        change(Path(shutil.copytree(world.memory, folder / "memory")))
        return world.learn(folder, model=world.learnt, task=world.second)

    return Case(name, ("memory", *says), arguments)


def edit_manifest(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        write(path, json.loads(path.read_text(encoding="utf-8")) | changes)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def with_other_tokenizer(world: World, folder: Path) -> Path:
    shutil.copytree(world.learnt, folder / "other")
    tokenizer_of("hgfedcba=?中文").save_pretrained(folder / "other")
    return folder / "other"


def without(name: str) -> Callable[[World, Path], Path]:
    def change(world: World, folder: Path) -> Path:
        shutil.copytree(world.base, folder / "broken")
        (folder / "broken" / name).unlink()
        return folder / "broken"

    return change


def config_file(name: str, content: object, *says: str) -> Case:
    return learn(name, "config.yaml", *says, config=lambda world, folder: write(folder / "config.yaml", content))


def resumed(*changes: str) -> Callable[[World, Path], list[object]]:
    def arguments(world: World, folder: Path) -> list[object]:
        shutil.copytree(world.run, folder / "run")
        return ["run", world.stream, "--output", folder / "run", "--resume", *changes]

    return arguments


def resumed_elsewhere(world: World, folder: Path) -> list[object]:
    shutil.copytree(world.run, folder / "run")
    other = write_task(folder / "second", shift=5)
    return ["run", write_stream(folder / "s.yaml", world.base, [world.first, other]), "--output", folder / "run", "--resume"]


def evaluated(*more: object) -> Callable[[World, Path], list[object]]:
    def arguments(world: World, folder: Path) -> list[object]:
        words = [getattr(world, word[1:]) if str(word).startswith("@") else word for word in more]
        return ["evaluate", "--model", world.base, "--output", folder / "scores", "--max-new-tokens", "4", *words]

    return arguments


def entries(world: World, *more: dict[str, object]) -> list[dict[str, object]]:
    return [{"data": str(world.first), "max_new_tokens": 4}, *more]


def occupied(world: World, folder: Path) -> Path:
    return write(folder / "mine" / "thesis.txt", "months of work").parent


CASES = [
    # Data
    learn("no such file", "wher.json", "no such file", "did you mean 'where.json'", task=lambda w, f: write(f / "where.json", [GOOD]).with_name("wher.json")),
    learn("no such folder", "no/where", "check the path", task="no/where"),
    data("no rows", [], "holds no rows", "add examples"),
    data("no bytes", "", "empty", "add examples"),
    data("wrong keys", [GOOD, {"prompt": "a", "anwser": "b"}], "row 2", "no 'completion' or 'answer'", "did you mean 'answer'"),
    data("a number for text", [GOOD, GOOD, {"prompt": "a", "answer": 7}], "row 3", "'answer' must be a string, not a number (7)"),
    data("a record that is none", [GOOD, "text"], "row 2", "must be an object"),
    data("not UTF-8", b'[{"prompt": "\xe4", "answer": "a"}]', "line 1", "0xe4", "save the file as UTF-8"),
    data("broken JSON", '[{"prompt": "a",\n "answer": }]', "line 2", "broken JSON", "mend it"),
    data("completion above the context", [GOOD, {"prompt": "a", "answer": "b" * 60}], "row 2", "61 tokens", "max_length 48", "shorten"),
    # Streams
    stream("two tasks of one name", "stream.yaml", "task 2 'first'", "another 'name'", tasks=lambda w, f: entries(w, {"data": str(w.first)})),
    stream("no test split", "train.json", "no test split", "'test'", tasks=lambda w, f: entries(w, {"data": str(w.second / "train.json"), "name": "b"})),
    stream("unknown metric", "'rouge' is unknown", "did you mean 'rouge_l'", tasks=lambda w, f: entries(w, {"data": str(w.second), "metric": "rouge"})),
    stream("unknown key of a task", "task 1", "unknown key 'epoch'", "did you mean 'epochs'", tasks=lambda w, f: [{"data": str(w.first), "epoch": 2}]),
    stream("unknown key of a stream", "stream.yaml", "unknown key 'leaning_rate'", "did you mean 'learning_rate'", leaning_rate=1),
    stream("no tasks", "stream.yaml", "'tasks' is empty", "list at least one", tasks=[]),
    stream("no model", "stream.yaml", "no model", "--model", model=""),
    Case("no stream", ("nowhere.yaml", "check the path"), lambda w, f: ["run", f / "nowhere.yaml", "--output", f / "run"]),
    # Settings
    setting("leaning_rate=1", "unknown key 'leaning_rate'", "did you mean 'learning_rate'"),
    setting("method.head_buget=3", "method", "unknown key 'head_buget'", "did you mean 'head_budget'"),
    setting("replay.ration=0.1", "replay", "unknown key 'ration'", "did you mean 'ratio'"),
    setting("learning_rate=fast", "learning_rate", "'fast' is not a float"),
    setting("seed=1.5", "seed", "1.5 is not a int"),
    setting("method.lambda2=strong", "method.lambda2", "'strong'", "'auto'"),
    setting("replay.ratio=1.5", "replay.ratio", "1.5", "between 0 and 1"),
    setting("replay=7", "replay", "7 is not a mapping"),
    setting("method.head_budget=-1", "method.head_budget", "-1 is negative", "give a count"),
    setting("method.layer_budget=-2", "method.layer_budget", "-2 is negative", "give a count"),
    setting("method.query_budget=-0.5", "method.query_budget", "-0.5 is negative", "give a count"),
    setting("method.head_budget=1.5", "method.head_budget", "1.5 is above 1", "whole number"),
    setting("save_strategy=steps", "'save_strategy' would be ignored", "saved after each task", "remove it"),
    setting("--method sekr", "'sekr' is unknown", "did you mean 'seekr'"),
    setting("max_length=-4", "max_length", "above 0"),
    setting("learning_rate", "unrecognized argument: learning_rate", "--help"),
    setting("=3", "'=3' is not a setting", "write key=value"),
    config_file("unknown key of a file", {"learning_rat": 1}, "unknown key 'learning_rat'", "did you mean 'learning_rate'"),
    config_file("broken YAML", "a: 1\nb: [", "line 2", "mend it"),
    config_file("key twice", "seed: 1\nseed: 2", "line 2", "key 'seed' twice"),
    # Models
    learn("no such model", "nowhere", "no such model folder", model="nowhere", whole=True),
    learn("no config.json", "broken", "config.json", "model folder", model=without("config.json")),
    learn("no weights", "broken", "cannot be loaded", "model.safetensors", model=without("model.safetensors")),
    # Memories
    learn("memory of another model", "manifest.json", "another model", "a new memory folder", model=lambda w, f: save_model(f / "other", seed=1), memory=lambda w, f: w.memory),
    learn("memory of the model before", "manifest.json", "generation 1", "'first'", memory=lambda w, f: w.memory),
    learn("memory of another tokenizer", "manifest.json", "another tokenizer", "use the tokenizer", model=with_other_tokenizer, memory=lambda w, f: w.memory),
    memory("truncated tensors", lambda m: cut(m / "0001-first.safetensors"), "0001-first.safetensors", "truncated", "from a copy"),
    memory("altered texts", lambda m: flip(m / "0001-first.json"), "0001-first.json", "sha256", "from a copy"),
    memory("altered importance", lambda m: flip(m / "importance-0001.safetensors"), "importance-0001.safetensors", "from a copy"),
    memory("truncated manifest", lambda m: cut(m / "manifest.json") or cut(m / "manifest.json"), "manifest.json", "from a copy"),
    memory("altered manifest", edit_manifest(generation=5), "manifest.json", "sha256", "from a copy"),
    memory("newer format", edit_manifest(version=99), "manifest.json", "99", "update seekr-cl"),
    memory("no manifest", lambda m: (m / "manifest.json").unlink(), "not a replay memory", "new folder"),
    Case("nothing to show", ("nowhere", "not a replay memory"), lambda w, f: ["memory", "show", f / "nowhere"]),
    # Outputs
    learn("output in use", "mine", "not empty", "another --output", output=occupied),
    learn("one folder for both", "--memory and --output", "folder of its own", output=lambda w, f: f / "x", memory=lambda w, f: f / "x"),
    Case("run in use", ("run", "already holds a run", "--resume"), lambda w, f: ["run", w.stream, "--output", w.run]),
    Case("run where something is", ("mine", "not empty"), lambda w, f: ["run", w.stream, "--output", occupied(w, f)]),
    Case("resumed with another seed", ("run.json", "another 'seed'", "another --output"), resumed("seed=9")),
    Case("resumed with another method", ("run.json", "another 'method'"), resumed("--method", "derpp")),
    Case("resumed with other data", ("run.json", "another 'tasks'"), resumed_elsewhere),
    # Evaluation
    Case("evaluation without test", ("no test split",), lambda w, f: evaluated("--task", write(f / "t" / "train.json", [GOOD]).parent)(w, f)),
    Case("evaluation by an unknown metric", ("'exact' is unknown", "exact_match"), evaluated("--task", "@first", "@second", "--metric", "exact")),
    Case("one name evaluated twice", ("two tasks are called 'first'", "rename"), evaluated("--task", "@first", "@first")),
    Case("answers above the context", ("48", "lower max_new_tokens"), evaluated("--task", "@first", "--max-new-tokens", "48")),
    Case("batches of nothing", ("--batch-size", "at least 1"), evaluated("--task", "@first", "--batch-size", "0")),
    Case("length of nothing", ("max_length", "above 0"), evaluated("--task", "@first", "--max-length", "0")),
    # Strange, but it runs
    setting("method.head_budget=0", "head_budget is 0", "attention is not kept", runs=True),
    setting("method.layer_budget=0", "layer_budget", "is 0", "attention is not kept", runs=True),
    setting("method.head_budget=1000", "method.head_budget", "1000", "all 8", runs=True),
    setting("method.layer_budget=1000", "method.layer_budget", "1000", "all 2", runs=True),
    setting("replay.ratio=0", "replay.ratio", "nothing of this task is kept", runs=True),
    learn("no padding token", model=lambda w, f: save_model(f / "unpadded", pad=False), runs=True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_user_may_get_wrong(case, world, seekr, tmp_path):
    arguments = [str(word) for word in case.arguments(world, tmp_path)]
    before = fingerprint(tmp_path)
    if case.whole:
        command = [sys.executable, "-m", "seekr_cl", *arguments]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        code, out, err = process.returncode, process.stdout, process.stderr
    else:
        done = seekr(*arguments)
        code, out, err = done.code, done.out, done.err
    assert code == (0 if case.runs else 2), err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("warning: ") or not case.runs]
    assert len(lines) == bool(case.says), err
    for line in lines:
        assert line.startswith("warning: " if case.runs else "error: ")
        assert all(word in line for word in case.says), line
    after = fingerprint(tmp_path)
    if not case.runs:
        assert out == ""
        assert after == before
    else:
        assert {"model/config.json", "memory/manifest.json"} <= after.keys()
        assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("setting", ["method.head_budget=0", "method.layer_budget=0", "method.head_budget=1000"])
def test_budgets_of_nothing_and_of_more_than_there_is_learn_a_second_task_too(setting, world, seekr, tmp_path):
    assert seekr(*world.learn(tmp_path, setting)).code == 0
    again = world.learn(tmp_path, setting, model=tmp_path / "model", task=world.second, output=tmp_path / "model2")
    done = seekr(*again)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    shown = seekr("memory", "show", tmp_path / "memory")
    heads = "8" if "1000" in setting else "0"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.out.splitlines()]
    assert [row[5] for row in rows if row and row[0] in ("first", "second")] == [heads, heads]

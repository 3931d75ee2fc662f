"""Benchmarks and methods on the command line: what is listed, a run of a benchmark's stream, what its scores say."""

import json

import pytest
from cli_world import write_stream

from seekr_cl import SeekrConfig
from seekr_cl.errors import ConfigError
from seekr_cl.methods import METHODS
from seekr_cl.methods.options import OPTIONS
from seekr_cl.tasks.benchmarks import BENCHMARKS

TASKS = ("C-STANCE", "FOMC")


def test_lists(seekr):
    found = {one["name"]: one for one in json.loads(seekr("benchmark", "list", "--json").out)}
    assert list(found) == list(BENCHMARKS)
    trace = found["trace"]
    assert trace["protocols"]["seekr"]["epochs"]["1"]["NumGLUE-ds"] == 10
    assert trace["protocols"]["seekr"]["metrics"]["20Minuten"] == "sari_trace"
    assert trace["paper"]["url"].startswith("https://")
    assert "500, 1000, reasoning, 5000" in seekr("benchmark", "list").out
    methods = {one["name"]: one for one in json.loads(seekr("methods", "--json").out)}
    assert list(methods) == list(METHODS)
    for name, method in METHODS.items():
        assert methods[name]["paper"]["title"] == method.paper.title
        assert methods[name]["needs"]["memory"] == (method.keeps and not method.generates)
        assert methods[name]["needs"]["all_tasks"] == (name == "multitask")
        assert methods[name]["needs"]["adapters"] == method.adapters
        assert methods[name]["needs"]["earlier_model"] == method.frozen_copy
    table = seekr("methods").out
    assert all(name in table for name in METHODS)
    assert all(f"{option.setting}={option.value}" in table for option in OPTIONS)
    assert {one["value"] for one in methods["seekr"]["options"]} == {option.value for option in OPTIONS}
    assert {block for one in methods["derpp"]["options"] for block in one["setting"].split(".")[:-1]} == {"replay"}
    of_all = [option.value for option in OPTIONS if "." not in option.setting]
    assert [one["value"] for one in methods["ewc"]["options"]] == of_all


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.setting}={option.value}")
def test_listed_options_exist(option):
    block, _, key = option.setting.rpartition(".")
    if not block:
        SeekrConfig(**{key: option.value})
        with pytest.raises(ConfigError, match=key):
            SeekrConfig(**{key: option.value + "s"})
        return
    given = {"method": {"name": "seekr"}} | {block: {"name": "seekr"} if block == "method" else {}}
    if option.on is not None:
        where, _, value = option.on.partition("=")
        given[where.split(".")[0]][where.split(".")[1]] = value
    given[block][key] = option.value
    SeekrConfig(**given)
    given[block][key] = option.value + "s"
    with pytest.raises(ConfigError, match=option.setting):
        SeekrConfig(**given)


def test_a_run_says_what_it_deviates_in(seekr, world, tmp_path):
    source = tmp_path / "source"
    for task in TASKS:
        for split in ("train", "test"):
            rows = [{"prompt": f"{letter}=", "answer": f"bc\nAnswer:{letter}"} for letter in "abcdef"]
            tested = [{"prompt": f"{letter}=", "answer": letter} for letter in "abc"]
            (source / task).mkdir(parents=True, exist_ok=True)
            (source / task / f"{split}.json").write_text(json.dumps(rows if split == "train" else tested))
    done = seekr("benchmark", "fetch", "trace", "--from", source, "--output", "data", "--variant", "500")
    assert done.code == 2
    assert "--partial" in done.err
    done = seekr(
        *("benchmark", "fetch", "trace", "--from", source, "--output", "data", "--variant", "500", "--partial"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "not as published: C-STANCE: 6 training rows, not 500" in done.out
    block = {"name": "trace", "data": "data", "variant": 500, "only": list(TASKS), "max_new_tokens": 8}
    lengths = {"max_length": 48, "max_prompt_length": 24, "max_answer_length": 24}
    stream = write_stream(tmp_path / "s.yaml", world.base, [], **lengths, num_train_epochs=1)
    content = json.loads(stream.read_text())
    del content["tasks"]
    stream.write_text(json.dumps({**content, "benchmark": block}))
    done = seekr("run", stream, "--output", "run", "benchmark.epochs=1", "limit={train: 6}")
    assert done.code == 0, done.err
    said = json.loads((tmp_path / "run" / "scores.json").read_text())["benchmark"]
    assert said == json.loads((tmp_path / "run" / "run.json").read_text())["benchmark"]
    assert (said["name"], said["variant"], said["order"], said["epochs_of"]) == ("trace", "500", "1", "this stream")
    assert said["data"]["source"] == "source"
    lines = {line["what"]: (line["official"], line["here"]) for line in said["deviations"]}
    assert lines["max_length"] == (1536, 48)
    assert lines["epochs of FOMC"] == (5.0, 1)
    assert lines["max_new_tokens of FOMC"] == (512, 8)
    assert lines["rows"] == ("all", {"train": 6})
    assert lines["tasks"][1] == list(TASKS)
    assert [line["here"] for line in said["deviations"] if line["what"] == "data"] == [
        f"{task}: 6 training rows, not 500" for task in TASKS
    ]
    again = seekr("run", stream, "--output", "run", "--resume", "benchmark.epochs=1", "limit={train: 6}")
    assert again.code == 0, again.err
    other = seekr("run", stream, "--output", "run", "--resume", "benchmark.epochs=1", "benchmark.extract=whole")
    assert other.code == 2
    assert "another 'benchmark'" in other.err
    scores = seekr("evaluate", "--model", world.base, "--task", stream, "--output", "scores", "--max-length", 40)
    assert scores.code == 0, scores.err
    (evaluated,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["benchmarks"]
    assert (evaluated["name"], evaluated["data"]) == ("trace", said["data"])
    assert [line["here"] for line in evaluated["deviations"] if line["what"] == "max_length"] == [40]


def test_bad_options_are_one_line(seekr):
    for arguments, message in {
        ("benchmark", "fetch", "tracee", "--from", "x", "--output", "y"): "did you mean 'trace'?",
        ("benchmark", "fetch", "trace", "--from", "x", "--output", "y"): "does not exist",
        ("benchmark", "fetch", "long15", "--from", "x", "--output", "y", "--variant", "500"): "no variant '500'",
        ("benchmark",): "WHAT",
    }.items():
        done = seekr(*arguments)
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") == 1

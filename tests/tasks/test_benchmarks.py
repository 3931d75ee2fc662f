import json

import pytest

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation import get_metric
from seekr_cl.tasks import StreamSpec
from seekr_cl.tasks.benchmarks import BENCHMARKS, BenchmarkUse
from seekr_cl.tasks.benchmarks.use import BenchmarkBlock

ROWS = [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "b"}]


@pytest.fixture
def data(tmp_path):
    """All tasks of all benchmarks, of two rows each, but task195."""
    for one in BENCHMARKS.values():
        for task in one.tasks:
            if task != "task195":
                (tmp_path / "data" / task).mkdir(parents=True, exist_ok=True)
                for split in ("train", "test"):
                    (tmp_path / "data" / task / f"{split}.json").write_text(json.dumps(ROWS))
    return tmp_path


def use(data, **block):
    return BenchmarkUse({"name": "trace", "data": "data", **block}, "s.yaml: benchmark", data)


def of(one, key):
    return {entry["name"]: entry[key] for entry in one.entries}


def what(one, settings=None, limit=None):
    described = one.describe({**one.protocol.settings, **(settings or {})}, limit)
    return {line["what"]: (line["official"], line["here"]) for line in described["deviations"]}


def test_orders_are_the_published_ones(shared):
    def orders(pack):
        return json.loads((shared / "data" / pack / "orders.json").read_text(encoding="utf-8"))

    trace, superni, long = orders("trace"), orders("superni"), orders("long_sequence")
    ours = {name: {key: list(tasks) for key, tasks in one.orders.items()} for name, one in BENCHMARKS.items()}
    assert ours["trace"] == {"1": trace["trace_order1"], "2": trace["trace_order2"]}
    # The shared folder's SEEKR orders have task1687 where the paper's have task195.
    stand_in = {
        key: ["task195" if task == "task1687" else task for task in superni[f"seekr_order{key}"]] for key in (1, 2)
    }
    assert ours["superni"] == {
        "3": stand_in[1], "4": stand_in[2], "sapt1": superni["sapt_order1"], "sapt2": superni["sapt_order2"],
    }  # fmt: skip
    assert ours["standard5"] == {
        **{key: long[f"standard_order{key}"] for key in "123"}, "five": long["standard_five"],
    }  # fmt: skip
    assert ours["long15"] == {key: long[f"long_order{key}"] for key in "456"}
    protocol = BENCHMARKS["trace"].protocols["trace"]
    assert {task: protocol.epochs_of(task, "2") for task in BENCHMARKS["trace"].tasks} == trace["epochs_trace"]


def test_the_registry_is_sound():
    for one in BENCHMARKS.values():
        for protocol in one.protocols.values():
            for order, tasks in one.orders.items():
                assert len(set(tasks)) == len(tasks)
                assert all(protocol.epochs_of(task, order) > 0 for task in tasks)
            for task in one.tasks:
                get_metric(protocol.metric_of(task))
            assert set(protocol.metrics) <= set(one.tasks)
        assert set(one.stand_ins) | set(one.aliases) <= set(one.tasks)


def test_trace_as_seekr_does_it(data):
    one = use(data, order=2)
    assert list(of(one, "epochs").values()) == [10, 10, 10, 5, 5, 5, 5, 5]
    assert of(one, "metric") == {
        "C-STANCE": "first_character", "FOMC": "first_character", "ScienceQA": "first_character",
        "NumGLUE-cm": "exact_match", "NumGLUE-ds": "exact_match", "MeetingBank": "rouge_l_trace",
        "Py150": "edit_similarity_py150", "20Minuten": "sari_trace",
    }  # fmt: skip
    assert set(of(one, "extract").values()) == {"trace"}
    assert list(what(one)) == ["data", "empty answers"]


CHANGES = {
    "variant": ({"variant": "reasoning"}, lambda one: one.variant, "reasoning"),
    "order": ({"order": 2}, lambda one: one.tasks[0], "NumGLUE-cm"),
    "protocol": ({"protocol": "trace"}, lambda one: of(one, "metric")["FOMC"], "exact_match"),
    "protocol's extraction": ({"protocol": "trace"}, lambda one: of(one, "extract")["FOMC"], "whole"),
    "epochs of a protocol": ({"epochs": "trace"}, lambda one: of(one, "epochs")["MeetingBank"], 7),
    "epochs of all": ({"epochs": 0.5}, lambda one: set(of(one, "epochs").values()), {0.5}),
    "epochs of one": ({"epochs": {"FOMC": 2}}, lambda one: list(of(one, "epochs").values())[:3], [5, 2, 5]),
    "metrics": ({"metrics": {"FOMC": "f1"}}, lambda one: of(one, "metric")["FOMC"], "f1"),
    "extract": ({"extract": "whole"}, lambda one: set(of(one, "extract").values()), {"whole"}),
    "longest answer": ({"max_new_tokens": 9}, lambda one: set(of(one, "max_new_tokens").values()), {9}),
    "of one": ({"max_new_tokens": {"FOMC": 9}}, lambda one: list(of(one, "max_new_tokens").values())[:2], [512, 9]),
    "only": ({"only": ["Py150", "FOMC"]}, lambda one: one.tasks, ["FOMC", "Py150"]),
}


@pytest.mark.parametrize(("block", "seen", "value"), CHANGES.values(), ids=list(CHANGES))
def test_every_key_changes_something(block, seen, value, data):
    assert seen(use(data, **block)) == value
    assert seen(use(data)) != value


def test_every_key_is_tested():
    tested = {key for block, _, _ in CHANGES.values() for key in block} | {"name", "data", "stand_ins"}
    assert set(BenchmarkBlock.__dataclass_fields__) == tested


def test_what_deviates_is_said(data):
    one = use(
        data, epochs={"FOMC": 2}, metrics={"FOMC": "f1"}, extract="whole", max_new_tokens={"Py150": 9},
        only=["FOMC", "Py150"],
    )  # fmt: skip
    found = what(one, {"prompt_boundary": "separate", "max_length": 99}, {"train": 8})
    assert found == {
        "tasks": (list(BENCHMARKS["trace"].orders["1"]), ["FOMC", "Py150"]),
        "metric of FOMC": ("first_character", "f1"),
        "epochs of FOMC": (5.0, 2),
        "extract of FOMC": ("trace", "whole"),
        "extract of Py150": ("trace", "whole"),
        "max_new_tokens of Py150": (512, 9),
        "rows": ("all", {"train": 8}),
        "data": ("fetched, rows and checksums checked", "not fetched, nothing checked"),
        "prompt_boundary": ("merged", "separate"),
        "max_length": (1536, 99),
        "empty answers": found["empty answers"],
    }
    said = use(data, epochs="trace").describe({})
    assert (said["epochs_of"], said["protocol"]) == ("trace", "seekr")
    assert {"what": "epochs of FOMC", "official": 5.0, "here": 3.0} in said["deviations"]
    assert use(data, epochs=1).describe({})["epochs_of"] == "this stream"


def test_a_stand_in_only_where_asked_for(data):
    with pytest.raises(DataError, match=r"task195.*stand_ins: \{task195: task1687\}"):
        use(data, name="superni")
    one = use(data, name="superni", stand_ins={"task195": "task1687"}, epochs={"task1687": 3})
    assert one.tasks[10] == "task1687"
    assert what(one)["task task195"] == ("task195", "task1687")
    assert of(one, "metric")["task1687"] == "exact_match"
    assert (of(one, "epochs")["task1687"], what(one)["epochs of task1687"]) == (3, (10.0, 3))


METRICS_OF = {
    ("superni", "sapt", "sapt1"): {"rouge_l_sapt"},
    ("superni", "seekr", "3"): {"rouge_l_trace", "exact_match"},
    ("standard5", "olora", "five"): {"exact_match_normalised"},
    ("long15", "olora", "4"): {"exact_match_normalised"},
    ("long15", "sapt", "5"): {"exact_match_normalised"},
}


@pytest.mark.parametrize(("name", "protocol", "order"), METRICS_OF)
def test_a_protocol_scores_as_its_paper_does(name, protocol, order, data):
    stand_ins = {"task195": "task1687"} if order == "3" else None
    one = use(data, name=name, protocol=protocol, order=order, stand_ins=stand_ins)
    assert set(of(one, "metric").values()) == METRICS_OF[name, protocol, order]
    if (name, protocol) == ("superni", "seekr"):
        labels = {task for task, metric in of(one, "metric").items() if metric == "exact_match"}
        assert labels == {"task363", "task875", "task1687"}


REMAINING = {
    ("trace", "seekr"): {"empty answers"},
    ("trace", "trace"): {"decoding", "spaces around an answer", "ScienceQA"},
    ("superni", "seekr"): {"several references"},
    ("superni", "sapt"): {"truncation", "BOS", "several references", "answer", "end of the prompt", "best epoch"},
    ("standard5", "olora"): {"truncation", "BOS", "answer"},
    ("long15", "olora"): {"truncation", "BOS", "answer"},
    ("long15", "sapt"): {"truncation", "BOS", "answer", "end of the prompt", "best epoch", "epochs", "prompts"},
}


def test_every_protocol_lists_what_is_always_different(data):
    protocols = {(name, protocol) for name, one in BENCHMARKS.items() for protocol in one.protocols}
    assert protocols == set(REMAINING)
    for (name, protocol), expected in REMAINING.items():
        stand_ins = {"task195": "task1687"} if (name, protocol) == ("superni", "seekr") else None
        order = "sapt1" if (name, protocol) == ("superni", "sapt") else None
        lines = use(data, name=name, protocol=protocol, order=order, stand_ins=stand_ins).describe({})["deviations"]
        assert expected <= {line["what"] for line in lines}
        assert all(line["official"] != line["here"] for line in lines)


BAD = {
    "no mapping": ("trace", ["must be a mapping"]),
    "unknown key": ({"name": "trace", "data": "data", "orders": 1}, ["'orders'", "did you mean 'order'?"]),
    "unknown name": ({"name": "tracee", "data": "data"}, ["'tracee'", "did you mean 'trace'?"]),
    "no data": ({"name": "trace"}, ["no 'data'", "fetch"]),
    "order": ({"name": "trace", "data": "data", "order": 3}, ["order", "3", "known: 1, 2"]),
    "order is no flag": ({"name": "trace", "data": "data", "order": True}, ["order", "True"]),
    "variant": ({"name": "trace", "data": "data", "variant": 50}, ["variant", "50", "5000"]),
    "variant of none": ({"name": "long15", "data": "data", "variant": 50}, ["one edition only"]),
    "protocol": ({"name": "trace", "data": "data", "protocol": "sapt"}, ["protocol", "seekr, trace"]),
    "epochs name": ({"name": "trace", "data": "data", "epochs": "seeker"}, ["epochs", "did you mean 'seekr'?"]),
    "epochs task": ({"name": "trace", "data": "data", "epochs": {"FOMCC": 1}}, ["epochs", "'FOMC'"]),
    "epochs value": ({"name": "trace", "data": "data", "epochs": {"FOMC": "x"}}, ["FOMC must be a number"]),
    "metrics": ({"name": "trace", "data": "data", "metrics": ["f1"]}, ["metrics", "must map"]),
    "extract": ({"name": "trace", "data": "data", "extract": "trac"}, ["did you mean 'trace'?"]),
    "only": ({"name": "trace", "data": "data", "only": ["agnews"]}, ["only", "'agnews'"]),
    "only empty": ({"name": "trace", "data": "data", "only": []}, ["only", "list"]),
    "tokens": ({"name": "trace", "data": "data", "max_new_tokens": {"FOMC": 1.5}}, ["FOMC", "whole number"]),
}


@pytest.mark.parametrize(("block", "wanted"), BAD.values(), ids=list(BAD))
def test_bad_blocks_are_named(block, wanted, data):
    with pytest.raises(ConfigError) as caught:
        BenchmarkUse(block, "s.yaml: benchmark", data)
    message = str(caught.value)
    assert [part for part in ["s.yaml: benchmark: ", *wanted] if part not in message] == [], message


def test_a_stream_with_a_benchmark(data):
    path = data / "s.yaml"
    path.write_text("model: m\nmax_length: 64\nbenchmark: {name: trace, data: data, order: 1}\n")
    spec = StreamSpec.from_yaml(path, {"order": 2})
    assert [task.name for task in spec.load_tasks()] == list(BENCHMARKS["trace"].orders["2"])
    assert spec.load_tasks()[0].extract == "trace"
    # The stream's own settings win over the paper's.
    assert spec.settings == {
        "model": "m", "max_length": 64, "max_prompt_length": 1024, "max_answer_length": 512,
        "prompt_boundary": "merged", "long_completions": "refuse",
    }  # fmt: skip
    path.write_text("benchmark: {name: trace, data: data}\ntasks: [a]")
    with pytest.raises(ConfigError, match="both 'benchmark' and 'tasks'"):
        StreamSpec.from_yaml(path)
    path.write_text("benchmark: {name: trace, data: data, epochs: 0}")
    with pytest.raises(ConfigError, match=r"task 1 \(C-STANCE\).*epochs"):
        StreamSpec.from_yaml(path)


def test_the_examples_name_what_is_there(shared, monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("SEEKR_SHARED", str(shared))
    for path in (Path(__file__).parents[2] / "examples").glob("*.yaml"):
        spec = StreamSpec.from_yaml(path)
        assert spec.benchmark is not None
        assert all(task.train and task.test for task in spec.load_tasks(limit={"train": 2, "test": 2}))

"""Comparisons of run folders: numbers, warnings, and names that cannot do harm."""

import html.parser
import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_runs import change, make_run, task

from seekr_cl.errors import DataError
from seekr_cl.report.comparison import compare
from seekr_cl.report.comparison_plot import plot_runs
from seekr_cl.report.comparison_tables import COLUMNS, markdown, page, remarks, summary_rows
from seekr_cl.system.files import write_json
from seekr_cl.system.sizes import size


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path / f"{m}{s}", m, s, final) for m, final in (("seqft", 0.1), ("seekr", 0.8)) for s in (0, 1)
    ]


def test_methods_over_seeds(runs):
    content = compare(runs)
    assert content["not_comparable"] == []
    assert [row["method"] for row in content["methods"]] == ["seqft", "seekr"]
    for place, row in enumerate(content["methods"]):
        scores = [json.loads((run / "scores.json").read_text()) for run in runs[2 * place : 2 * place + 2]]
        assert row["seeds"] == [0, 1]
        assert row["op"]["values"] == [one["op"] for one in scores]
        assert row["op"]["mean"] == pytest.approx(np.mean([one["op"] for one in scores]))
        assert row["op"]["std"] == pytest.approx(np.std([one["op"] for one in scores], ddof=1))
        assert row["op"]["interval"][0] < row["op"]["mean"] < row["op"]["interval"][1]
        assert row["bwt"]["interval"][0] < row["bwt"]["mean"] < row["bwt"]["interval"][1]
        assert row["tasks"]["b"]["mean"] == pytest.approx(np.mean([one["matrix"][-1]["scores"][1] for one in scores]))
        assert (row["seconds"], row["memory_bytes"]) == (60.5, 2_000_000.5)
    (test,) = content["paired_tests"]
    assert (test["first"], test["second"], test["seeds"], test["examples"]) == ("seqft", "seekr", [0, 1], 120)
    assert test["difference"] == pytest.approx(
        content["methods"][1]["op"]["mean"] - content["methods"][0]["op"]["mean"]
    )
    assert test["p"] < 0.001
    assert any("2 seeds is a rough one" in note for note in content["notes"])


def test_other_settings_are_another_row(runs, tmp_path):
    more = [make_run(tmp_path / f"x{n}", "seekr", 0, 0.5, settings={"lambda2": n, "heads": "all"}) for n in (1, 2)]
    content = compare([runs[0], *more])
    assert [row["method"] for row in content["methods"]] == ["seqft", "seekr (lambda2=1)", "seekr (lambda2=2)"]


def test_other_training_is_another_row(runs, tmp_path):
    trained = {"num_train_epochs": 3.0, "learning_rate": 0.1, "general_samples": 8}
    more = [
        make_run(tmp_path / f"{place}{s}", "seekr", s, 0.5, training=trained | {"general": f"/{place}/{s}.json"})
        for place in "xy"
        for s in (2, 3)
    ]
    found = compare([*runs, *more[:2]])["methods"]
    assert [row["method"] for row in found[:2]] == ["seqft", "seekr"]
    assert found[2]["method"] == "seekr (general=True, general_samples=8, learning_rate=0.1)"
    # Where general data lies says nothing of what it is.
    assert [row["seeds"] for row in compare([more[0], more[3]])["methods"]] == [[2, 3]]


def test_learning_rates_and_steps_are_shown(runs, tmp_path):
    """A method that replays makes more steps, and one rate is not right for all: both stand beside the scores."""
    rates = dict(zip("abc", (1e-3, 1e-4, 1e-4)))
    made = [{"task": name, "learning_rate": rate, "optimizer_steps": 20} for name, rate in rates.items()]
    one = make_run(tmp_path / "one", "olora", 0, 0.5)
    change(one / "scores.json", training=made)
    content = compare([one, runs[0]])
    first, second = content["methods"]
    assert (first["learning_rates"], first["steps"]) == ([1e-3, 1e-4], 60)
    assert (second["learning_rates"], second["steps"]) == ([], None)  # a run of a former version
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in summary_rows(content, size)]
    assert [(row["rate"], row["steps"]) for row in rows] == [("0.001, 0.0001", "60"), ("-", "-")]
    change(one / "scores.json", training=[{"task": "a"}])
    assert compare([one, runs[0]])["methods"][0]["steps"] is None


@pytest.mark.parametrize(
    ("made", "file", "new", "said"),
    [
        ({"tasks": [task("c"), task("a"), task("b")]}, "", {}, "different task order (['a', 'b', 'c'] against ['c'"),
        ({"tasks": [task("a"), task("b"), task("d")]}, "", {}, "different tasks"),
        ({"tasks": [task("a"), task("b", 30), task("c")]}, "", {}, "references or longest answer) (b)"),
        ({"tasks": [task("a"), task("b"), task("c", max_new_tokens=3)]}, "", {}, "longest answer) (c)"),
        ({"tasks": [task("a"), task("b"), task("c", metric="f1")]}, "", {}, "different metrics (c)"),
        ({"tasks": [task("a", epochs=1), task("b"), task("c")]}, "", {}, "([3.0, 3.0, 3.0] against [1, 3"),
        ({"training": {"num_train_epochs": 5.0}}, "", {}, "different epochs"),
        ({"model_sha256": "other"}, "", {}, "different base model"),
        ({}, "run.json", {"tasks__0__fingerprint": "5000"}, "different training data (variant, size or texts) (a)"),
        ({}, "scores.json", {"conventions__bwt": "divided by N"}, "different conventions of OP, BWT, FWT"),
        ({}, "scores.json", {"evaluation__engine": "vllm"}, "different evaluation engine (transformers against vllm)"),
        ({}, "scores.json", {"evaluation__dtype": "bfloat16"}, "dtype (float32 against bfloat16)"),
        ({}, "scores.json", {"evaluation__decoding": {"strategy": "beam"}}, "different decoding"),
        ({"stages": 2}, "", {}, "has learned 2 of 3 tasks"),
        ({"method": "seqft", "seed": 0}, "", {}, "several runs with seed 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(tmp_path, made, file, new, said):
    one = make_run(tmp_path / "one", "seqft", 0, 0.5)
    other = make_run(tmp_path / "other", **({"method": "seekr", "seed": 0, "final": 0.5} | made))
    if file:
        other_file = other / file
        content = json.loads(other_file.read_text())
        if "tasks__0__fingerprint" in new:
            content["tasks"][0]["fingerprint"] = new["tasks__0__fingerprint"]
            other_file.write_text(json.dumps(content))
        else:
            change(other_file, **new)
    content = compare([one, other])
    assert said in "\n".join(content["not_comparable"])
    assert f"NOT COMPARABLE: {content['not_comparable'][0]}" in remarks(content)
    assert "<b>Not comparable</b>" in page(content, size, "x.png")
    if "longest answer" in said or "metrics" in said:
        assert content["paired_tests"] == []


def test_what_is_worth_knowing_is_no_obstacle(tmp_path):
    one = make_run(tmp_path / "one", "seqft", 0, 0.5)
    other = make_run(
        tmp_path / "o", "seekr", 1, 0.5, training={"num_train_epochs": 3.0, "learning_rate": 0.1}, machine="x"
    )
    change(other / "scores.json", evaluation__batch_size=99)
    content = compare([one, other])
    assert content["not_comparable"] == content["paired_tests"] == []
    said = "\n".join(content["notes"])
    for part in ("learning_rate None against 0.1", "different machine", "different seeds (seqft: 0; seekr: 1)"):
        assert part in said
    assert "batch size" not in said  # it changes no answer in float32 on a CPU
    change(other / "scores.json", evaluation__same_for_any_batch_size=False)
    assert "batch size" in "\n".join(compare([one, other])["notes"])


def test_without_predictions_there_are_still_scores(runs):
    next((runs[0] / "evaluations").rglob("a.jsonl")).unlink()
    content = compare(runs)
    assert "predictions are missing or altered" in "\n".join(content["notes"])
    assert content["methods"][0]["op"]["interval"] == sorted(content["methods"][0]["op"]["values"])  # over seeds alone
    assert content["paired_tests"] == []


def test_names_are_shown_and_not_run(tmp_path):
    name = "<script>alert(1)</script>|`x` *y* $z$"
    tasks = [task(name), task("中文")]
    content = compare(
        [make_run(tmp_path / "a|<b>", "seqft", 0, 0.5, tasks), make_run(tmp_path / "b", "seekr", 0, 0.9, tasks)]
    )
    shown = page(content, size, '"><x>.png')
    assert "<script>" not in shown
    assert "<x>" not in shown
    assert "&lt;script&gt;" in shown
    cells: list[str] = []
    parser = html.parser.HTMLParser()
    parser.handle_data = cells.append
    parser.feed(shown)
    assert name in cells
    lines = [line for line in markdown(content, size).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines[4:]} == {4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_runs(content, tmp_path / "c.png")
    assert plt.imread(tmp_path / "c.png").std() > 0.05


def test_folders_that_hold_no_run(runs, tmp_path):
    for break_it, said in (
        (lambda run: (run / "run.json").unlink(), r"run\.json: not readable"),
        (lambda run: (run / "run.json").write_text("[]"), r"run\.json: not a file of this library"),
        (lambda run: change(run / "run.json", tasks=[]), "do not fit each other"),
        (lambda run: change(run / "scores.json", seconds="x"), "do not fit each other"),
        (lambda run: change(run / "scores.json", matrix=[], base=None), "no task has been learned yet"),
    ):
        run = make_run(tmp_path / "broken", "seqft", 0, 0.5)
        break_it(run)
        with pytest.raises(DataError, match=said):
            compare([runs[0], run])
    with pytest.raises(DataError, match="named twice"):
        compare([runs[0], runs[0]])


def test_a_run_that_is_not_done_is_no_seed_of_the_others(tmp_path):
    runs = [make_run(tmp_path / f"seekr-{seed}", "seekr", seed, 0.8) for seed in (0, 1)]
    whole = compare(runs)["methods"]
    found = compare([*runs, make_run(tmp_path / "short", "seekr", 2, 0.8, stages=2)])["methods"]
    assert [row["method"] for row in found] == ["seekr", "seekr (2 of 3 tasks)"]
    assert found[0] == whole[0]


def test_what_else_was_measured(tmp_path):
    """Plasticity against plain fine-tuning, the form of the answers, and drift, where runs have them."""
    runs = [make_run(tmp_path / f"{m}{s}", m, s, f) for m, f in (("seqft", 0.1), ("seekr", 0.8)) for s in (0, 1)]
    for number, run in enumerate(runs[2:]):
        change(run / "scores.json", format={name: {"valid": 90.0 + number} for name in "abc"})
        kl = [{"against": a, "kind": k, "kl": value} for a, k, value in (("base", "old", 0.2), ("base", "new", 0.6))]
        drift = {"kl": [*kl, {"against": "itself", "kind": "old", "kl": 9.0}], "text": {"base": {"rise": 0.05}}}
        write_json(run / "drift.json", drift)
    content = compare(runs)
    plain, seekr = (row["measures"] for row in content["methods"])
    diagonal = []
    for run in runs:
        rows = json.loads((run / "scores.json").read_text())["matrix"][1:]
        diagonal.append([row["scores"][place] for place, row in enumerate(rows)])
    learned = [row["plasticity"]["mean"] for row in content["methods"]]
    assert learned == pytest.approx([np.mean(diagonal[:2]), np.mean(diagonal[2:])])
    assert (seekr["valid_format"], seekr["kl_old"], seekr["kl_new"]) == (90.5, 0.2, pytest.approx(0.6))
    assert (seekr["kl_general"], seekr["text_rise"], plain["valid_format"]) == (None, 0.05, None)
    (test,) = content["plasticity_tests"]
    assert (test["first"], test["second"]) == ("seqft", "seekr")
    assert test["difference"] == pytest.approx(learned[1] - learned[0])
    assert any("right after learning" in line for line in remarks(content))
    for shown in (markdown(content, size), page(content, size, "x.png")):
        assert "plain-text loss above base" in shown
        assert "90.5%" in shown


def test_scores_of_a_former_version_are_comparable_with_new_ones(tmp_path):
    old, new = (make_run(tmp_path / f"{seed}", "seekr", seed, 0.8) for seed in (0, 1))
    content = json.loads((old / "scores.json").read_text())
    content.pop("plasticity")
    write_json(old / "scores.json", content)
    assert compare([old, new])["not_comparable"] == []
    assert compare([old])["methods"][0]["plasticity"]["mean"] > 0

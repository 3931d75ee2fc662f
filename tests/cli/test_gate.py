"""``seekr gate``: the exit code is the decision."""

import json
from xml.etree import ElementTree

import pytest
from made_evaluations import fates, make_evaluation
from made_runs import change, make_run, task

from seekr_cl.cli.main import main
from seekr_cl.report.verdict import Verdict
from seekr_cl.system.files import write_json

KEPT, LOST, FEW = fates(390, 2, 3, 5), fates(200, 60, 4, 136), fates(18, 0, 0, 2)


@pytest.fixture
def gate(tmp_path, capsys):
    """Runs the gate over two evaluations with the given fates of their tasks' examples."""

    def run(pairs, *more):
        for side, name in enumerate("ab"):
            make_evaluation(tmp_path / name, {task: pair[side] for task, pair in pairs.items()})
        before, after = str(tmp_path / "a"), str(tmp_path / "b")
        code = main(["gate", "--before", before, "--after", after, *map(str, more)])
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("pairs", "options", "code", "said"),
    [
        ({"a": KEPT, "b": KEPT}, [], 0, "gate: PASSED: 2 of 2 within"),
        ({"a": KEPT, "b": LOST}, [], 1, "gate: FAILED: b -14 ["),
        ({"a": KEPT, "b": LOST}, ["--task", "b=25"], 0, "gate: PASSED"),
        ({"a": KEPT, "b": LOST}, ["--max-drop", "25", "--task", "b=1"], 1, "allowed -1"),
        ({"a": KEPT, "b": FEW}, [], 3, "gate: CANNOT SAY: b 0 ["),
        ({"a": LOST, "b": FEW}, [], 1, "gate: FAILED: a"),
        ({"a": KEPT}, ["--max-drop", "0"], 3, "gate: CANNOT SAY"),
        ({"a": LOST}, ["--max-drop", "12"], 3, "examples a task would tell"),
        ({"a": LOST}, ["--max-drop", "12", "--confidence", "0.6"], 1, "gate: FAILED"),
    ],
)
def test_exit_codes(gate, pairs, options, code, said):
    found, printed = gate(pairs, *options)
    assert (found, printed.err) == (code, "")
    assert said in printed.out


def test_json_and_junit_say_the_same(gate, tmp_path):
    name = "new\x00line <&>"
    code, printed = gate({"a": KEPT, name: LOST, "few": FEW}, "--json", "--junit", tmp_path / "gate.xml")
    content = json.loads(printed.out)
    assert (code, content["exit_code"]) == (1, 1)
    assert content["decision"].startswith("gate: FAILED: new")
    assert {line["task"]: line["outcome"] for line in content["lines"]} == {"a": "kept", name: "lost", "few": "unsure"}
    assert 100 < next(line["needed"] for line in content["lines"] if line["task"] == "few") < 200
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert [suite.get(key) for key in ("tests", "failures", "errors")] == ["3", "1", "1"]
    assert [[child.tag for child in case] for case in suite] == [["system-out"], ["failure"], ["error"]]
    assert suite[1].get("name") == "new�line <&>"


def test_predictions_that_are_gone_are_not_left_out(tmp_path, capsys):
    for name in "ab":
        path = make_evaluation(tmp_path / name, {"a": KEPT[0]}) / "a.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
    assert main(["gate", "--before", str(tmp_path / "a"), "--after", str(tmp_path / "b")]) == 2
    assert "a.jsonl: 399 predictions, where" in (said := capsys.readouterr().err)
    assert "400 examples" in said


def test_a_run_is_judged_by_its_last_model(tmp_path, capsys):
    kept = make_run(tmp_path / "kept", "seekr", 0, 0.9, [task(name, 100) for name in "ab"])
    fell = make_run(tmp_path / "fell", "seqft", 0, 0.1, [task(name, 100) for name in "ab"])
    assert main(["gate", str(fell)]) == 1
    assert "a" in capsys.readouterr().out
    assert main(["gate", str(kept), "--max-drop", "30"]) == 0
    one = make_run(tmp_path / "one", "seekr", 0, 0.9, [task(name, 100) for name in "ab"], stages=1)
    assert main(["gate", str(one)]) == 2
    assert "no old task" in capsys.readouterr().err


@pytest.mark.parametrize("scores", [{"skill": [90.0, 80.0]}, {"skill": []}, {}, {"skill": [90.0] * 9}])
def test_a_probe_without_all_its_scores_is_no_pass(tmp_path, capsys, scores):
    run = make_run(tmp_path / "run", "seekr", 0, 0.9, [task(name, 100) for name in "ab"])
    change(run / "scores.json", probes=scores, tests={name: {"metric": "exact_match"} for name in ("a", "b", "skill")})
    assert main(["gate", str(run), "--max-drop", "30", "--json"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert "skill" in content["decision"]
    assert [line["outcome"] for line in content["lines"] if line["task"] == "skill"] == ["unsure"]
    assert any("probe 'skill': " in note and "run the stream again" in note for note in content["notes"])
    assert Verdict.from_json(content).sentence == content["sentence"]
    assert main(["gate", str(run), "--max-drop", "30", "--junit", str(tmp_path / "x.xml")]) == 3
    assert "gate: CANNOT SAY: skill (no answers to compare)" in capsys.readouterr().out
    assert ElementTree.parse(tmp_path / "x.xml").getroot()[0].get("errors") == "1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "--before", "A", "--after", "B"], "not both"),
        ([], "name the folder of a run, or --before and --after"),
        (["--before", "A"], "name the folder of a run, or --before and --after"),
        (["--before", "A", "--after", "nowhere"], "nowhere/scores.json: not readable"),
        (["nowhere"], "nowhere/scores.json: not readable"),
        (["A"], "is an evaluation"),
        (["RUN", "--general", "1"], "--general: a run scores no general benchmarks"),
        (["--before", "RUN", "--after", "B"], "is the folder of a run"),
        (["--before", "A", "--after", "B", "--since", "previous"], "--since: is about a run"),
        (["--before", "A", "--after", "B", "--max-drop", "-1"], "--max-drop: -1 must lie between 0 and 100"),
        (["--before", "A", "--after", "B", "--max-drop", "nan"], "--max-drop: nan must lie"),
        (["--before", "A", "--after", "B", "--confidence", "95"], "--confidence: 95 must be at least 0.5 and below 1"),
        (["--before", "A", "--after", "B", "--task", "a"], "--task a: must be TASK=POINTS"),
        (["--before", "A", "--after", "B", "--task", "a=x"], "--task a=x: must be TASK=POINTS"),
        (["--before", "A", "--after", "B", "--task", "z=1"], "--task z: is not compared"),
        (["--before", "A", "--after", "C"], "another test set"),
        (["--before", "A", "--after", "D"], "row 1 is not the example"),
        (["--before", "A", "--after", "B", "--junit", "nowhere/x/y.xml/"], "error: "),
    ],
)
def test_bad_input_is_2_in_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    for name in "ABD":
        make_evaluation(tmp_path / name, {"a": KEPT[0]})
    make_evaluation(tmp_path / "C", {"a": FEW[0]})
    rows = (tmp_path / "D" / "a.jsonl").read_text().splitlines()
    (tmp_path / "D" / "a.jsonl").write_text("\n".join([rows[1], rows[0], *rows[2:]]) + "\n")
    make_run(tmp_path / "RUN", "seekr", 0, 0.9)
    (tmp_path / "nowhere").write_text("") if "--junit" in words else None
    assert main(["gate", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err


def test_a_damaged_evaluation_is_bad_input(tmp_path, capsys):
    for name in "ab":
        make_evaluation(tmp_path / name, {"a": KEPT[0]})
    for content in ({"tasks": [1]}, {"tasks": {"a": {"score": 1}}}, {"tasks": {"a": None}}):
        change(tmp_path / "b" / "scores.json", **content)
        assert main(["gate", "--before", str(tmp_path / "a"), "--after", str(tmp_path / "b")]) == 2
        assert "scores.json" in capsys.readouterr().err


def test_what_was_left_out_may_be_what_was_lost(tmp_path, capsys):
    """A task or benchmark of the model in use without its like is no pass; a new one is none of the gate's."""
    before = make_evaluation(tmp_path / "a", dict.fromkeys(("yelp", "yahoo", "amazon"), FEW[0]))
    make_evaluation(tmp_path / "b", {"yelp": FEW[1]})
    whole = make_evaluation(tmp_path / "c", dict.fromkeys(("yelp", "yahoo", "amazon", "new"), FEW[1]))
    benchmark = {"score": 60.0, "stderr": 0.1, "metric": "acc,none", "shots": 5, "examples": 14000}
    write_json(before / "general.json", {"tasks": {"mmlu": benchmark}})

    def gate(after, tasks=None):
        if tasks is not None:
            write_json(after / "general.json", {"tasks": tasks})
        code = main(["gate", "--before", str(before), "--after", str(after), "--max-drop", "40"])
        return code, "".join(capsys.readouterr())

    code, said = gate(tmp_path / "b")
    assert code == 2
    assert "b: has no task yahoo, amazon, which " in said
    code, said = gate(whole)
    assert code == 2
    assert "c: has no general.json, which " in said
    for tasks in ({}, {"piqa": benchmark}, {"mmlu": benchmark | {"shots": 0}}):
        code, said = gate(whole, tasks)
        assert code == 2
        assert "general benchmark mmlu is missing, or has another metric, shots" in said
    assert gate(whole, {"mmlu": benchmark, "piqa": benchmark})[0] == 0
    code, said = gate(whole, {"mmlu": benchmark | {"stderr": None}})
    assert code == 3
    assert "no interval for general benchmark mmlu" in said


def test_one_folder_is_no_comparison(tmp_path, capsys):
    folder = make_evaluation(tmp_path / "a", {"a": FEW[0]})
    (tmp_path / "link").symlink_to(folder)
    pair = ["--before", str(folder)]
    for words in (
        ["gate", *pair, "--after", str(tmp_path / "link")],
        ["evaluate", *pair, "--model", "m", "--task", "t.jsonl", "--output", f"{tmp_path}/link", "--resume"],
    ):
        assert main(words) == 2
        assert "is both evaluations" in capsys.readouterr().err

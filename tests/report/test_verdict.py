"""The verdict on given answers: the sentence, the numbers, and what it says of what it cannot know."""

import json

import pytest
from made_evaluations import fates, make_evaluation
from made_runs import change, make_run, task
from rich.console import Console

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.report.evaluation_verdict import of_evaluations
from seekr_cl.report.learning_verdict import of_learning
from seekr_cl.report.verdict import Cost, Line, Verdict
from seekr_cl.report.verdict_table import verdict_table
from seekr_cl.report.verdicts import of_run
from seekr_cl.system.files import write_json


@pytest.fixture
def evaluations(tmp_path):
    """A model that kept dbpedia, surely lost of yahoo, and learned yelp."""
    kept, lost, gained = fates(390, 2, 3, 5), fates(200, 60, 4, 136), fates(100, 10, 190, 100)
    pairs = {"dbpedia": kept, "yahoo": lost, "yelp": gained}
    sides = [{name: pair[side] for name, pair in pairs.items()} for side in (0, 1)]
    return [make_evaluation(tmp_path / name, side) for name, side in zip("ab", sides)]


def test_two_evaluations(evaluations):
    verdict = of_evaluations(*evaluations)
    lines = {line.task: line for line in verdict.lines}
    assert {name: line.outcome for name, line in lines.items()} == {
        "dbpedia": "kept", "yahoo": "lost", "yelp": "kept",
    }  # fmt: skip
    assert (lines["yahoo"].before, lines["yahoo"].after, lines["yahoo"].change) == (65, 51, -14)
    assert lines["yahoo"].interval[0] < -14 < lines["yahoo"].interval[1] < -9
    moved = lines["yahoo"].transitions
    assert (moved["lost_examples"], moved["gained_examples"]) == (60, 4)
    assert (moved["lost"]["value"], moved["gained"]["value"], moved["choices"]) == (15, 1, 3)
    assert verdict.sentence.startswith("Kept: 2 of 3 old tasks within 2 points (mean +")
    assert "lost: yahoo -14 [" in verdict.sentence
    assert "gained: yelp +45 [" in verdict.sentence
    assert verdict.mean[0] == pytest.approx((0.25 - 14 + 45) / 3, abs=1e-4)


def test_a_file_gives_it_back(evaluations, tmp_path):
    verdict = of_evaluations(*evaluations)
    write_json(tmp_path / "verdict.json", verdict.to_json())
    assert json.dumps(Verdict.read(tmp_path / "verdict.json").to_json()) == json.dumps(verdict.to_json())
    for key, wrong in (("format", 2), ("lines", [{"task": "x"}]), ("cost", None), ("mean", [1])):
        change(tmp_path / "verdict.json", **{key: wrong})
        with pytest.raises(DataError, match="not a verdict of this library"):
            Verdict.read(tmp_path / "verdict.json")
        write_json(tmp_path / "verdict.json", verdict.to_json())
    change(tmp_path / "verdict.json", something="new")
    assert Verdict.read(tmp_path / "verdict.json") is not None


def test_allowed_drops_of_single_tasks(evaluations):
    assert [line.outcome for line in of_evaluations(*evaluations, drops={"yahoo": 25}).lines][1] == "kept"
    with pytest.raises(ConfigError, match="--task yaho: is not compared; did you mean 'yahoo'"):
        of_evaluations(*evaluations, drops={"yaho": 5})


def test_other_tests_are_refused_and_other_settings_said(evaluations):
    change(evaluations[1] / "scores.json", evaluation__dtype="bfloat16")
    assert of_evaluations(*evaluations).notes == ("evaluated with another dtype: float32 before, bfloat16 after",)
    change(evaluations[1] / "scores.json", tasks__yahoo__sha256="other")
    with pytest.raises(DataError, match="task 'yahoo' has another test set"):
        of_evaluations(*evaluations)
    change(evaluations[1] / "scores.json", tasks={})
    with pytest.raises(DataError, match="no task or benchmark is in both"):
        of_evaluations(*evaluations)


def test_general_ability_has_the_harness_errors(evaluations):
    for folder, score in zip(evaluations, (60.0, 57.0)):
        benchmark = {"score": score, "stderr": 0.3, "metric": "acc,none", "shots": 5, "examples": 14000}
        write_json(folder / "general.json", {"harness": "1", "tasks": {"mmlu": benchmark}})
    line = of_evaluations(*evaluations).of_kind("general")[0]
    assert (line.outcome, line.change) == ("lost", -3)
    assert line.interval == pytest.approx((-3 - 1.96 * 0.3 * 2**0.5, -3 + 1.96 * 0.3 * 2**0.5), abs=0.01)
    assert of_evaluations(*evaluations, general_drop=4).of_kind("general")[0].outcome == "kept"
    change(evaluations[0] / "general.json", harness="2")
    with pytest.raises(DataError, match="another 'harness'"):
        of_evaluations(*evaluations)


def test_a_run_since_learning_and_since_the_task_before(tmp_path):
    run = make_run(tmp_path / "run", "seekr", 0, 0.3, [task(name, 150) for name in "abc"])
    verdict = of_run(run)
    assert [(line.task, line.kind) for line in verdict.lines] == [("a", "old"), ("b", "old"), ("c", "new")]
    matrix = json.loads((run / "scores.json").read_text())["matrix"]
    rows = [row["scores"] for row in matrix[1:]]
    old = verdict.of_kind("old")
    assert [line.before for line in old] == pytest.approx([rows[0][0], rows[1][1]], abs=1e-4)
    assert [line.after for line in old] == pytest.approx(rows[2][:2], abs=1e-4)
    before = of_run(run, since="previous").of_kind("old")
    assert [line.before for line in before] == pytest.approx(rows[1][:2], abs=1e-4)
    # The drop of a is spread over two tasks.
    assert before[0].change > old[0].change


def test_a_run_whose_answers_are_gone_still_has_its_scores(tmp_path):
    run = make_run(tmp_path / "run", "seekr", 0, 0.3)
    next((run / "evaluations" / "01-a").glob("a.jsonl")).unlink()
    verdict = of_run(run)
    line = verdict.lines[0]
    assert (line.outcome, line.interval, line.change is None) == ("unsure", None, False)
    assert "no interval for a" in verdict.notes[0]
    assert "unsure: a -" in verdict.sentence


def test_costs_are_told(tmp_path):
    run = make_run(tmp_path / "run", "seekr", 0, 0.9)
    made = {"learning_rate": 1e-4, "optimizer_steps": 53, "new_steps": 50, "replay_steps": 3}
    change(run / "scores.json", training=[made] * 3, memory_bytes=1_400_000)
    verdict = of_run(run)
    assert verdict.cost == Cost(159, 0.06, 1_400_000)
    assert verdict.sentence.endswith("; cost: 6% more steps, 1.4 MB")
    change(run / "scores.json", training=[{"optimizer_steps": 53}] * 3)  # of a former version
    assert of_run(run).sentence.endswith("; cost: 159 steps, 1.4 MB")


def probed(tmp_path, task="old", kind="old", source="memory", before=0.0, after=-0.5, count=40, kl=0.25):
    side = {
        name: {"log_likelihood": [value - place / 1000 for place in range(count)], "exact": [value == 0.0] * count}
        for name, value in (("before", before), ("after", after))
    }
    for name, moved in (("before", 0.0), ("after", kl)):
        side[name]["kl"] = [None] * count if kl is None else [moved] * count
    return {"task": task, "kind": kind, "source": source} | side


def test_a_learning_is_judged_on_the_memory_and_says_so(tmp_path):
    new = probed(tmp_path, "new", "new", "train", -3.0, -0.01, kl=None)
    action = {"step": 8, "retention_action": "warn", "retention_told": "'old' fell by 9 points"}
    content = {"tasks": [new, probed(tmp_path)], "probes": [], "actions": [action]}
    write_json(tmp_path / "retention.json", content)
    verdict = of_learning(tmp_path, {"optimizer_steps": 10, "new_steps": 8, "replay_steps": 2}, 1000)
    old, learned = verdict.lines
    assert (old.task, learned.task) == ("old", "new")
    # exp(-0.5) of what it was, and the samples differ by no more than 4% of that.
    assert old.after / old.before == pytest.approx(0.6065, abs=0.001)
    assert old.outcome == "lost"
    assert old.more["log_likelihood"]["change"] == pytest.approx(-0.5)
    assert (old.more["exact"]["before"], old.more["exact"]["after"]) == (100, 0)
    assert (old.more["kl_to_stored"]["before"], old.more["kl_to_stored"]["after"]) == (0, 0.25)
    assert "kl_to_stored" not in learned.more
    assert "learned: new 97.1 (from 4.9)" in verdict.sentence
    assert verdict.sentence.endswith("(on the memory's own samples)")
    assert "step 8: warn: 'old' fell by 9 points" in verdict.notes
    assert any("training examples" in note for note in verdict.notes)
    content["tasks"][1]["after"]["log_likelihood"][0] = None
    content["tasks"][0]["before"]["log_likelihood"] = [None] * 40
    write_json(tmp_path / "retention.json", content)
    verdict = of_learning(tmp_path, {}, 0)
    assert [(line.task, line.examples) for line in verdict.lines] == [("old", 39)]
    assert "task 'new': 40 probes gave no finite number and are left out" in verdict.notes
    content["tasks"][1]["after"]["log_likelihood"] = [None] * 40
    write_json(tmp_path / "retention.json", content)
    verdict = of_learning(tmp_path, {}, 0)
    assert [(line.task, line.outcome) for line in verdict.lines] == [("old", "unsure")]
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    for broken in ({"tasks": [{}]}, [], {"tasks": [probed(tmp_path, count=0)], "actions": []}):
        write_json(tmp_path / "retention.json", broken)
        with pytest.raises(DataError, match=r"retention\.json: not the probes"):
            of_learning(tmp_path, {}, 0)


def test_names_are_shown_and_do_nothing(tmp_path):
    name = "[red]\x1b[31m\u202e<b>\nx"
    line = Line(name, "old", "f1", 10.0, 20.0, -10.0, (-12.0, -8.0), 50, 9, "lost")
    verdict = Verdict((line,), notes=("x",))
    assert verdict.sentence.isprintable()
    console = Console(width=300, record=True, markup=False)
    console.print(verdict_table(verdict))
    text = console.export_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]⟨U+001B⟩[31m⟨U+202E⟩<b> x" in text
    assert "-10" in text
    assert "[-12, -8]" in text


def test_a_new_task_is_learned_only_where_its_score_rose(tmp_path):
    for rows, outcome in (([90.0, 10.0], "not learned"), ([10.0, 90.0], "learned")):
        run = make_run(tmp_path / outcome, "seekr", 0, 0.3, [task(name) for name in "ab"])
        base = {"after": "base", "scores": [0.0, rows[0]]}
        stages = json.loads((run / "scores.json").read_text())["matrix"][1:]
        stages[-1]["scores"][1] = rows[1]
        change(run / "scores.json", base=[0.0, rows[0]], matrix=[base, *stages])
        verdict = of_run(run)
        line = verdict.of_kind("new")[0]
        assert (line.outcome, line.interval, line.change) == (outcome, None, rows[1] - rows[0])
        assert any(note.startswith("no interval for b: ") for note in verdict.notes)


def test_general_ability_that_was_computed_otherwise_or_says_nothing(evaluations):
    benchmark = {"score": 60.0, "stderr": 0.3, "metric": "acc,none", "shots": 5, "examples": 1000}
    for folder, dtype in zip(evaluations, ("float32", "bfloat16")):
        write_json(folder / "general.json", {"harness": "1", "dtype": dtype, "tasks": {"mmlu": benchmark}})
    said = "general ability was evaluated with another dtype: float32 before, bfloat16 after"
    assert said in of_evaluations(*evaluations).notes
    for key, value in (("examples", 0), ("examples", -3), ("score", None), ("stderr", "N/A"), ("shots", None)):
        change(evaluations[1] / "general.json", tasks__mmlu=benchmark | {key: value})
        with pytest.raises(DataError, match=f"mmlu has the {key} {value!r}"):
            of_evaluations(*evaluations)

"""The report of runs whole, partial, damaged and hostile, without a browser."""

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
from made_runs import change, make_run, task
from report_runs import ACTIVE, HOSTILE, Page, hostile_run, record_events
from tinylm import config_for, constant_task, reverse_task

from seekr_cl.cli.drift_command import _settle
from seekr_cl.cli.main import main
from seekr_cl.errors import OutputError
from seekr_cl.report.html import page as page_module
from seekr_cl.report.html.charts import decimate, linear, logarithmic
from seekr_cl.report.html.gather import _models_logs, _stages, gather
from seekr_cl.report.html.methods import pareto
from seekr_cl.report.html.page import render, write_report
from seekr_cl.report.html.training_logs import recorded_logs, recorded_phases
from seekr_cl.runs.stream_run import run
from seekr_cl.system.run_record import RECORD
from seekr_cl.tasks import Example, Task
from seekr_cl.training import learn


@pytest.fixture(scope="module")
def learned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks with SEEKR that was really learned, with a probe."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    tasks = [reverse_task(), constant_task("no", "no")]
    run(base, tasks, folder, config_for("seekr", folder), probes=[constant_task("yes", "yes")])
    return folder


def page_of(*folders: Path) -> Page:
    return Page(render(gather(folders)))


def shown(page: Page) -> str:
    return " ".join(" ".join(page.texts).split())


def test_everything_of_a_run_is_on_the_page(learned: Path) -> None:
    [data] = gather([learned])
    assert (data.done, data.notes) == (True, [])
    page = page_of(learned)
    text = shown(page)
    scores = json.loads((learned / "scores.json").read_text())
    # The verdict comes first.
    assert text.index(scores["verdict"]["sentence"]) < text.index("Each row is a model")
    for row in scores["matrix"]:
        assert all(f"{score:.1f}" in text for score in row["scores"])
    for heading in ("Verdict", "Scores", "Answers gained and lost", "General ability", "Attention heads", "Training",
                    "Cost", "Provenance", "Lineage of the memory"):  # fmt: skip
        assert heading in text
    titles = [page.texts[n] for n in range(len(page.texts))]
    for title in ("Loss terms over steps", "Gradient shares over steps", "Time by phase", "Memory by kind and task",
                  "Probes over the stream", "importance after reverse", "forgettability after no"):  # fmt: skip
        assert title in titles
    generation = json.loads((learned / "memory/generations/0002.json").read_text())
    assert generation["model_sha256"][:12] in text
    assert {name for name, _ in data.phases} == {"base", "reverse", "no"}
    assert {"load", "train", "score", "write", "evaluate"} <= set(dict(data.phases)["no"])
    assert data.logs[1].replayed.count(1) == 3, "replay follows every new batch"
    for heads, record in zip(data.heads, generation["tasks"]):
        assert heads.chosen == {int(layer): chosen for layer, chosen in record["heads"].items()}
    assert sum(map(sum, data.heads[1].maps["sensitivity"])) == pytest.approx(2, abs=1e-4), "one task's part, by layer"


def test_bytes_by_kind_add_up(learned: Path) -> None:
    [data] = gather([learned])
    assert data.memory is not None
    files = [*(learned / "memory").glob("000*"), *(learned / "memory").glob("importance-0002*")]
    files += [learned / "memory/manifest.json", learned / "memory/generations/0002.json"]
    assert sum(sum(kinds.values()) for kinds in data.memory.tasks.values()) + sum(data.memory.shared.values()) == sum(
        path.stat().st_size for path in files
    )
    assert {"texts", "token ids", "logits", "attention"} <= set(data.memory.tasks["no"])


def test_the_page_needs_nothing_else(learned: Path, tmp_path: Path) -> None:
    write_report([learned], tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest", content)
    assert len(content.encode()) < 400_000
    assert page.count("script") == page.count("style") == 1
    # Every picture has a title and a description, and no two elements have the same id.
    pictures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert pictures
    assert all(set(str(one["aria-labelledby"]).split()) <= set(ids) for one in pictures)


def test_hostile_data_does_no_harm(tmp_path: Path) -> None:
    runs = [hostile_run(tmp_path / f"{HOSTILE[0][:8].replace('/', '')}{n}", seed=n) for n in range(2)]
    for folders in (runs[:1], runs):
        content = render(gather(folders))
        page = Page(content)
        assert page.count("script") == 1
        assert page.count("img") == 0
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "autofocus"], (tag, attributes)
        assert not set(content) & set(ACTIVE)
        text = shown(page)
        assert "<script>window.harmed = 1</script>" in text, "it is shown, not swallowed"
        assert "⟨U+001B⟩[31mred" in text
        assert "⟨U+202E⟩txt.exe" in text
        assert "a⟨U+0000⟩b" in text
        assert "{{ 7 * 191 }}" in text
        assert "characters left out" in text
        assert max(map(len, page.texts)) < 3000
        content.encode()


def test_a_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many and as long answers as there may be: fewer of them are shown."""
    texts = ["<&>" * 1000 + str(number) for number in range(130)]
    tasks = [Task(n, [Example(texts[0], "x")], test=[Example(text, text) for text in texts]) for n in "abc"]
    runs = gather([make_run(tmp_path / "run", "seekr", 0, 0.0, tasks)])
    assert page_module.LARGEST <= 3_000_000
    for largest in (3_000_000, 1_500_000, 300_000):
        monkeypatch.setattr(page_module, "LARGEST", largest)
        content = render(runs)
        assert len(content.encode()) < largest
        page = Page(content)
        shown_examples = sum("data-change" in attributes for _, attributes in page.tags)
        assert len(content.encode()) > largest / 4
        if shown_examples < len(runs[0].changes.shown):
            assert f"; {shown_examples} are on this page" in shown(page)
    assert shown_examples in (20, 60)
    monkeypatch.setattr(page_module, "LARGEST", 1000)
    with pytest.raises(OutputError, match="too many for one page"):
        render(runs)


def test_gained_and_lost(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "seekr", 0, 0.3)

    def scores(stage: str, name: str) -> list[float]:
        lines = (folder / "evaluations" / stage / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line)["score"] for line in lines]

    [data] = gather([folder])
    before, after = scores("01-a", "a"), scores("03-c", "a")
    lost = sum(x > y for x, y in zip(before, after))
    assert data.changes.counts["a"] == (sum(x < y for x, y in zip(before, after)), lost, 40)
    assert lost
    first = next(one for one in data.changes.shown if one.task == "a" and not one.gained)
    assert (first.scores, first.after[0]) == ((100.0, 0.0), "no")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "run.json").write_text('{"tasks": ['), r"run\.json: damaged"),
        (lambda run: (run / "run.json").write_text("[]"), r"run\.json: damaged \(not a JSON object\)"),
        (lambda run: (run / "run.json").write_text('{"tasks": 3}'), r"run\.json: not a run\.json of this library"),
        (lambda run: shutil.rmtree(run), "is not a folder"),
        (lambda run: [path.unlink() for path in run.glob("*.json*")], r"holds no run\.json"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, capsys, break_it, said: str) -> None:
    folder = make_run(tmp_path / "run", "seekr", 0, 0.3)
    break_it(folder)
    assert main(["report", str(folder), "--output", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("scores.json", "{", "scores.json: damaged"),
        ("scores.json", '{"tasks": ["a"]}', "not a scores.json"),
        ("evaluations/02-no/scores.json", '{"scores": {"no": "x"}}', "evaluation '02-no': scores.json is damaged"),
        ("evaluations/02-no/reverse.jsonl", "\x00\x00\n", "examples of task 'reverse': reverse.jsonl"),
        ("evaluations/02-no/reverse.jsonl", None, "examples of task 'reverse': reverse.jsonl"),
        ("memory/manifest.json", "{}", "memory: "),
        ("memory/importance-0002.safetensors", "x", "memory: "),
        ("memory/0001-reverse.safetensors", None, "memory: "),
        (RECORD, '\n{"event": 3}\nnot json\n[1]\n', "record.jsonl: 4 lines are no events"),
        ("verdict.json", '{"format": 99}', "verdict: "),
    ],
)
def test_what_is_damaged_is_said(learned: Path, tmp_path: Path, file: str, content: str | None, note: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(learned, folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    [data] = gather([folder])
    assert [one for one in data.notes if note in one], data.notes
    text = shown(page_of(folder))
    assert "Not in this report" in text
    assert "Provenance" in text


def test_a_run_that_goes_on(learned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(learned, folder)
    shutil.rmtree(folder / "evaluations/02-no")
    for name in ("scores.json", "verdict.json"):
        (folder / name).unlink()
    [data] = gather([folder])
    assert not data.done
    assert (data.state, data.going, data.notes) == ("1 of 2 tasks learned so far", "done", [])
    assert data.matrix is not None
    assert (len(data.matrix.rows), len(data.matrix.extra["yes"])) == (1, 2)
    for rest in ("evaluations/01-reverse", "evaluations/00-base", "memory", "models"):
        shutil.rmtree(folder / rest)
        assert not gather([folder])[0].done
    (folder / RECORD).unlink()
    assert "0 of 2 tasks learned so far" in shown(page_of(folder))


def test_a_run_of_a_former_version(learned: Path, tmp_path: Path) -> None:
    """Without a record the Trainer's logs beside the models are read."""
    folder = tmp_path / "run"
    shutil.copytree(learned, folder)
    (folder / RECORD).unlink()
    [data] = gather([folder])
    [whole] = gather([learned])
    assert [note for note in data.notes if "made by a former version" in note]
    names = {"loss_task", "share_task"}
    for one, other in zip(data.logs, whole.logs, strict=True):
        ours, theirs = (
            [{k: line[k] for k in names & line.keys()} for line in log.lines if names & line.keys()]
            for log in (one, other)
        )
        assert ours == theirs != []


def test_an_evaluation_and_a_learning(learned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    folder.mkdir()
    one = {"metric": "f1", "score": 40.5, "interval": [30.25, 50.75], "examples": 7}
    general = {"score": 30.5, "base": 33.25, "drift": -2.75, "stderr": 1.5, "examples": 9, "shots": 0}
    (folder / "scores.json").write_text(json.dumps({"model": "m", "tasks": {"a": one}}))
    (folder / "general.json").write_text(
        json.dumps({"tasks": {"mmlu": general}, "mean": 30.5, "base_mean": 33.25, "drift": -2.75})
    )
    text = shown(page_of(folder, learned / "models/02-no"))
    assert "30.2 to 50.8" in text
    assert "-2.8" in text
    assert "memory: not where it was" in text
    (folder / "general.json").write_text('{"tasks": 1}')
    assert gather([folder])[0].notes
    (folder / "scores.json").write_text('{"tasks": {"a": {}}}')
    assert main(["report", str(folder), "--output", str(tmp_path / "x.html")]) == 2


def test_an_earlier_model_is_told_apart_from_the_memory_as_it_is_now(base: Path, tmp_path: Path) -> None:
    for model, name in ((base, "first"), (tmp_path / "first", "second")):
        task = constant_task(name, "no")
        learn(model, task, tmp_path / "memory", tmp_path / name, config_for("replay", tmp_path, retention={}))
    earlier, latest = gather([tmp_path / "first", tmp_path / "second"])
    assert [note for note in earlier.notes if "shown as it is now, 0002; this model was written at 0001" in note]
    assert not [note for note in latest.notes if "memory" in note]


def test_several_runs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{m}{s}", m, s, final) for m, final in (("seqft", 0.1), ("seekr", 0.8)) for s in (0, 1)
    ]
    for number, folder in enumerate(runs):
        made = [{"task": n, "learning_rate": 1e-3, "optimizer_steps": 20 + number} for n in "abc"]
        change(folder / "scores.json", training=made, memory_bytes=1000 * (1 + number))
    page = page_of(*runs)
    text = shown(page)
    assert text.index("Verdict") < text.index("Methods")
    for title in (
        "Overall performance by method",
        "Retention against memory, bytes",
        "Retention against optimizer steps",
    ):
        assert title in page.texts
    assert "p < 0.001" in text
    other = make_run(tmp_path / "other", "seekr", 0, 0.5, [task("c"), task("a"), task("b")])
    assert "different task order" in shown(page_of(runs[0], other))
    assert main(["report", str(runs[0]), str(runs[0]), "--output", str(tmp_path / "x.html")]) == 2


def test_an_output_that_is_a_folder_is_refused(learned: Path, tmp_path: Path, capsys) -> None:
    assert main(["report", str(learned), "--output", str(tmp_path)]) == 2
    assert "name a file, such as" in capsys.readouterr().err


def test_what_was_repeated_after_a_crash_counts_once() -> None:
    events = record_events(["a", "b"])
    place = next(n for n, one in enumerate(events) if one["event"] == "log" and one["values"]["step"] == 7)
    again = next(n for n, one in enumerate(events) if one["event"] == "training")
    torn = [*events[:place], {**events[0], "time": 5_000.0}, *events[again:]]
    logs = recorded_logs(torn)
    assert [[line["step"] for line in log.lines] for log in logs] == [[*range(1, 11)]] * 2
    assert [sum(log.replayed) for log in logs] == [0, 5]
    whole = dict(recorded_phases(events))
    assert whole["b"] == {"load": 1.0, "train": 10.0, "score": 1.0, "write": 1.0, "evaluate": 4.0}
    assert dict(recorded_phases(events[:place]))["a"] == {"load": 1.0, "train": 6.0}


def test_actions_of_a_stopped_training_count_once() -> None:
    """Each training tells all that its log holds at its end, and one that goes on has the former one's log."""
    begun = {"event": "training", "time": 1.0, "task": "b", "number": 2, "steps": 9}
    told = [{"event": "retention", "time": 2.0, "told": f"step {step}: fell; warn"} for step in (4, 8)]
    [log] = recorded_logs([begun | {"done": 0}, told[0], begun | {"done": 6}, *told])
    assert log.actions == ["step 4: fell; warn", "step 8: fell; warn"]


def test_tasks_after_the_hundredth_come_last(tmp_path: Path) -> None:
    for place in ("00-base", "11-k", "99-y", "100-x"):
        (tmp_path / "evaluations" / place).mkdir(parents=True)
        (tmp_path / "evaluations" / place / "scores.json").write_text('{"scores": {}}')
        (tmp_path / "models" / place).mkdir(parents=True)
        (tmp_path / "models" / place / "training_log.json").write_text('[{"step": 1}]')
    notes: list[str] = []
    stages = _stages(tmp_path, notes)
    assert [stage.name for stage in stages] == ["base", "k", "y", "x"]
    assert [log.task for log in _models_logs(tmp_path, stages, notes)] == ["base", "k", "y", "x"]
    (tmp_path / "run.json").write_text('{"model": "b"}')
    given = argparse.Namespace(run=str(tmp_path), output=None, **dict.fromkeys(("model", "base", "previous", "memory")))
    _settle(given)
    assert (Path(given.model).name, Path(given.previous).name) == ("100-x", "99-y")


def test_scales() -> None:
    assert [mark for mark, _ in linear(0, 100, 0, 1, 4).ticks] == [0, 25, 50, 75, 100]
    assert linear(3, 3, 0, 1)(3) == 0
    assert [mark for mark, _ in logarithmic(0.002, 5, 0, 1).ticks] == [1e-3, 1e-2, 1e-1, 1, 10]
    points = [(float(n), float(n)) for n in range(1000)]
    few = decimate(points, 100)
    assert len(few) == 100
    assert few[0] == (5.0, 4.5)
    assert pareto([(1, 1), (2, 3), (3, 2), (2, 1), (4, 4)]) == [(1, 1), (2, 3), (4, 4)]

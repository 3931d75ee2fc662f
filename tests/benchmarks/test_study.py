"""The study: its plan is checked, its commands are those of the rows, its tables are of what is there."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from made_runs import make_run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("study", "study_plan", "study_report")
STAGE = {
    "question": "Does it help?", "sees": "much", "settled": "an interval", "stream": "s", "seeds": [0, 1],
    "rows": ["good", "bad"], "against": "bad",
}  # fmt: skip
PLAN = {
    "streams": {"s": {"model": "m"}},
    "rows": {"good": {"method": "seekr", "replay.ratio": 0.5}, "bad": {"method": "seqft"}},
    "stages": {"one": STAGE},
}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name, None)


def read(study: SimpleNamespace, folder: Path, **changes: object) -> object:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | {"stages": {"one": STAGE | changes}}))
    return study.study_plan.read_plan(path)


def test_a_table_of_what_is_finished(study: SimpleNamespace, tmp_path: Path) -> None:
    plan = read(study, tmp_path)
    (stage,) = plan.stages
    runs = tmp_path / "runs"
    assert study.study_report.write_stage(stage, plan, runs, tmp_path) == "one: 0 of 4 runs"
    for row, final in (("good", 0.8), ("bad", 0.2)):
        for seed in STAGE["seeds"]:
            make_run(runs / "s" / f"{row}-{seed}", plan.rows[row]["method"], seed, final)
    make_run(runs / "s" / "good-1", "seekr", 1, 0.8, stages=2)  # one task is still to be learned
    assert study.study_report.write_stage(stage, plan, runs, tmp_path) == "one: 3 of 4 runs"
    page = (tmp_path / "one.md").read_text()
    cells = {line.split("|")[1].strip(): line.split("|") for line in page.splitlines() if line.startswith("| ")}
    assert (cells["good"][2].strip(), cells["bad"][2].strip()) == ("0", "0, 1")
    value, low, high = map(float, re.findall(r"[-+]?\d+\.\d", cells["good"][5]))
    matrices = [study.study_report.read_run(runs / "s" / name).matrix for name in ("good-0", "bad-0")]
    assert value == pytest.approx(matrices[0].op - matrices[1].op, abs=0.05)
    assert 0 < low < value < high
    assert (tmp_path / "one.png").stat().st_size > 10_000
    kept = {path.name for path in (tmp_path / "raw" / "s").iterdir()}
    assert kept == {"bad-0.json", "bad-1.json", "good-0.json"}


def test_a_run_is_the_command_of_its_row(study: SimpleNamespace, tmp_path: Path) -> None:
    plan = read(study, tmp_path)
    run = plan.stages[0].runs()[0]
    words = study.study.command(plan, run, tmp_path)
    assert words[3:] == [
        "run", str(tmp_path / "s" / "stream.yaml"), "--method", "seekr", "--output", str(tmp_path / "s" / "good-0"),
        "seed=0", "replay.ratio=0.5",
    ]  # fmt: skip
    assert yaml.safe_load((tmp_path / "s" / "stream.yaml").read_text()) == {"model": "m"}
    run.folder(tmp_path).mkdir()
    assert study.study.command(plan, run, tmp_path)[-1] == "--resume"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rows": ["good", "none"]}, "row 'none'"),
        ({"stream": "t"}, "unknown stream"),
        ({"against": "good", "rows": ["bad"]}, "none of its rows"),
        ({"more": 1}, "more"),
    ],
)
def test_a_plan_that_points_nowhere_is_refused(
    study: SimpleNamespace, tmp_path: Path, changes: dict[str, object], wanted: str
) -> None:
    with pytest.raises(SystemExit, match=wanted):
        read(study, tmp_path, **changes)


def test_the_committed_plan_is_whole(study: SimpleNamespace) -> None:
    plan = study.study_plan.read_plan(BENCHMARKS / "results" / "study" / "plan.yaml")
    assert plan.stages
    with pytest.raises(SystemExit, match="no stage 'x'"):
        plan.chosen(["x"])

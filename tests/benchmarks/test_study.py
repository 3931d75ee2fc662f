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


SWEEP = STAGE | {"rows": ["bad"], "sweep": {"learning_rate": [1e-5, 1e-4, 1e-3]}}
TUNED = {
    "streams": PLAN["streams"],
    "rows": PLAN["rows"] | {"tuned": {"method": "seqft", "learning_rate": "best of rates"}},
    "stages": {"rates": SWEEP, "two": STAGE | {"rows": ["tuned", "good"], "against": "good"}},
}


def test_a_sweep_names_its_best_rate_and_a_later_row_takes_it(study: SimpleNamespace, tmp_path: Path) -> None:
    path, runs = tmp_path / "plan.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump(TUNED, sort_keys=False))
    plan = study.study_plan.read_plan(path)
    rates, two = plan.stages
    made = [(run.row, run.seed) for run in rates.runs()]
    assert made == [(f"bad@{rate}", seed) for seed in (0, 1) for rate in ("1e-05", "0.0001", "0.001")]
    assert "learning_rate=0.0001" in study.study.command(plan, rates.runs()[1], runs)
    # The middle one wins, though not with every seed.
    finals = {"1e-05": (0.5, 0.3), "0.0001": (0.4, 0.9), "0.001": (0.1, 0.2)}
    for rate, values in finals.items():
        for seed, final in enumerate(values):
            if (rate, seed) != ("0.001", 1):
                make_run(runs / "s" / f"bad@{rate}-{seed}", "seqft", seed, final)
    with pytest.raises(SystemExit, match="row 'tuned' needs the best rate of stage rates; make that stage first"):
        study.study.command(plan, two.runs()[0], runs)
    study.study_report.write_stage(rates, plan, runs, tmp_path)
    assert "The best rate is named when all runs are made" in (tmp_path / "rates.md").read_text()
    make_run(runs / "s" / "bad@0.001-1", "seqft", 1, 0.2)
    words = study.study.command(plan, two.runs()[0], runs)
    assert "learning_rate=0.0001" in words
    study.study_report.write_stage(rates, plan, runs, tmp_path)
    page = (tmp_path / "rates.md").read_text()
    ops = {
        rate: [study.study_report.read_run(runs / "s" / f"bad@{rate}-{seed}").matrix.op for seed in (0, 1)]
        for rate in finals
    }
    means = {rate: sum(values) / 2 for rate, values in ops.items()}
    found = re.search(r"\*\*Best learning rate: 0.0001\*\*, mean OP (\S+) \[(\S+), (\S+)\]", page)
    assert found
    value, low, high = map(float, found.groups())
    assert value == pytest.approx(means["0.0001"], abs=0.05)
    assert low < min(ops["0.0001"]) + 5 < value < high
    assert f"At 1e-05 it is {means['1e-05'] - means['0.0001']:+.1f} [" in page
    assert "last of the rates" not in page
    for seed in (0, 1):
        make_run(runs / "s" / f"tuned-{seed}", "seqft", seed, 0.5)
    study.study_report.write_stage(two, plan, runs, tmp_path)
    assert "- `tuned`: `method: seqft`, `learning_rate: 0.0001, best of rates`" in (tmp_path / "two.md").read_text()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sweep": {"learning_rate": [1e-5, 1e-4]}}, "is of one row"),
        ({"sweep": {"learning_rate": [1e-5]}, "rows": ["bad"]}, "two different rates"),
        ({"sweep": {"seed": [1, 2]}, "rows": ["bad"]}, "must be like"),
        ({"sweep": {"learning_rate": [1e-5, "1e-4"]}, "rows": ["bad"]}, "must be like"),
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


def test_a_rate_of_no_earlier_sweep_is_refused(study: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        yaml.safe_dump(TUNED | {"stages": {"two": TUNED["stages"]["two"], "rates": SWEEP}}, sort_keys=False)
    )
    with pytest.raises(SystemExit, match="learning_rate: 'best of rates' names no earlier stage with a sweep"):
        study.study_plan.read_plan(path)


def test_the_committed_plan_is_whole(study: SimpleNamespace) -> None:
    plan = study.study_plan.read_plan(BENCHMARKS / "results" / "study" / "plan.yaml")
    assert plan.stages
    with pytest.raises(SystemExit, match="no stage 'x'"):
        plan.chosen(["x"])

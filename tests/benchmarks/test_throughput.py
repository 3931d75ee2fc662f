"""The throughput benchmark: its rows, its phases, its ratios, and the whole of it on a tiny model."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATIOS = {"rows_vs_trl_short", "rows_vs_trl_long", "peak_vs_trl_short", "seekr_vs_seqft", "run_vs_before"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import throughput_cases
    import throughput_phases
    import throughput_report

    yield SimpleNamespace(cases=throughput_cases, phases=throughput_phases, report=throughput_report)
    for name in ("throughput_cases", "throughput_phases", "throughput_report", "timing"):
        sys.modules.pop(name, None)


def measured(variant: str, seconds: float, number: int = 0, name: str = "yahoo", **other: Any) -> dict[str, Any]:
    wall = {"load": 1.0, "forward": seconds / 4, "backward": seconds / 2, "optimizer": seconds / 4, "write": 2.0}
    one = {"shape": "s", "weights": "lora", "set": name, "kind": "short", "variant": variant, "round": number}
    return {**one, "rows": 8, "tokens": 80, "peak": 100, "resident": 40, "wall": wall, "cpu": wall} | other


def test_ratios_are_medians_over_rounds_against_the_faster_of_trls_forms(bench: SimpleNamespace) -> None:
    found = [measured("trl", second, number) for number, second in enumerate((4.0, 6.0, 40.0))]
    found += [measured("trl-packed", 100.0, number, peak=1) for number in range(3)]
    found += [measured("seqft", second, number, peak=50) for number, second in enumerate((2.0, 4.0, 10.0))]
    found += [measured("seekr", second, number) for number, second in enumerate((2.5, 5.0, 10.0))]
    ratios = bench.report.summary(found, "wall")
    assert ratios["rows_vs_trl_short"] == 2.0
    assert ratios["peak_vs_trl_short"] == 0.5
    # All of it counts, not the training alone: 5.5 / 5, 8 / 7 and 13 / 13.
    assert ratios["seekr_vs_seqft"] == 1.1
    assert ratios["rows_vs_trl_long"] is None


def test_cases_count_alike_and_long_answers_apart(bench: SimpleNamespace) -> None:
    found = [measured("trl", 8.0), measured("seqft", 1.0), measured("trl", 2.0, name="dbpedia")]
    found += [measured("seqft", 1.0, name="dbpedia"), measured("trl", 3.0, name="gsm8k", kind="long")]
    found += [measured("seqft", 2.0, name="gsm8k", kind="long")]
    ratios = bench.report.summary(found, "cpu")
    assert ratios["rows_vs_trl_short"] == 4.0
    assert ratios["rows_vs_trl_long"] == 1.5


def test_the_run_is_compared_beside_trl_at_both_times(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "before.json"
    run, case = {"wall": {"prepare": 30.0}, "cpu": {"prepare": 30.0}}, {"batch": 8}
    # The machine is half as fast now: TRL takes 8 seconds where it took 4.
    now = [measured("trl", 8.0), measured("seqft", 1.0)]
    assert bench.report.before_ratio(run, now, case, "wall", file) is None
    assert "absent" in capsys.readouterr().err

    then = [{"wall": {"prepare": 45.0}, "cpu": {"prepare": 45.0}}]
    bench.report.record(None, then, [measured("trl", 4.0)], case, file)
    assert bench.report.before_ratio(run, now, case, "wall", file) == pytest.approx(3.0)
    capsys.readouterr()
    assert bench.report.before_ratio(run, now, {"batch": 4}, "wall", file) is None
    assert "batch 8" in capsys.readouterr().err
    assert bench.report.before_ratio(run, now[1:], case, "wall", file) is None
    kept = json.loads(file.read_text())
    assert kept["commit"]
    assert kept["machine"]
    assert kept["date"]


def test_a_phase_inside_another_interrupts_it(bench: SimpleNamespace) -> None:
    phases = bench.phases.Phases()
    with phases.span("forward"):
        time.sleep(0.02)
        with phases.span("backward"):
            time.sleep(0.05)
        time.sleep(0.02)
    wall = phases.finish()["wall"]
    assert wall["backward"] >= 0.05
    assert wall["forward"] >= 0.04
    before = sum(wall.values())
    assert wall["forward"] + wall["backward"] + wall["prepare"] == pytest.approx(before)
    assert wall["forward"] < before - 0.05 + 1e-6


def test_rows_fit_and_keep_their_answers(bench: SimpleNamespace, shared: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = shared / "data" / "tiny_lm" / "stories260K"
    file = tmp_path / "rows.jsonl"
    tokens = bench.cases.write_rows(shared / "data" / "trace" / "MeetingBank", 3, model, 512, file)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lengths = [
        sum(len(tokenizer(row[key], add_special_tokens=False).input_ids) for key in ("prompt", "completion")) + 1
        for row in rows
    ]
    assert len(rows) == 3
    assert max(lengths) <= 512
    assert sum(lengths) == pytest.approx(tokens, abs=24)
    originals = json.loads((shared / "data" / "trace" / "MeetingBank" / "train.json").read_text())
    for row in rows:
        assert any(row["completion"] == " " + one["answer"].strip() for one in originals)
        # What is cut is the prompt's beginning.
        assert any(one["prompt"].endswith(row["prompt"][-40:]) for one in originals)
    with pytest.raises(SystemExit, match="rows fit"):
        bench.cases.write_rows(shared / "data" / "trace" / "MeetingBank", 3, model, 16, file)


@pytest.mark.slow
def test_it_measures_both_trainers_and_prints_one_line(shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), "--quick", "--json", "--no-run", "--sets", "yahoo"]
    command += ["--model", str(shared / "data" / "tiny_lm" / "stories260K"), "--rows", "4", "--length", "256"]
    command += ["--batch", "2", "--threads", "1", "--work", str(tmp_path), "--output", str(tmp_path / "all.json")]
    command += ["--markdown", str(tmp_path / "tables.md")]
    done = subprocess.run(command, env=os.environ | {"SEEKR_SHARED": str(shared)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    ratios = json.loads(line)
    assert ratios.keys() == RATIOS
    assert ratios["rows_vs_trl_short"] > 0
    assert ratios["peak_vs_trl_short"] > 0

    found = json.loads((tmp_path / "all.json").read_text())["measured"]
    assert [one["variant"] for one in found] == ["trl", "seqft"]
    for one in found:
        assert one["steps"] == 2
        assert one["peak"] >= one["resident"] > 0
        assert all(one["wall"][phase] > 0 for phase in ("load", "prepare", "forward", "backward", "optimizer", "write"))
    assert "| seqft |" in (tmp_path / "tables.md").read_text()
    assert not list(tmp_path.glob("throughput-*"))

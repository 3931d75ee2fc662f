"""Ratios and tables of the throughput benchmark, and the numbers from before that it compares with."""

import argparse
import datetime
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from throughput_phases import TRAINING
from timing import machine

BEFORE = Path(__file__).parent / "results" / "throughput_before.json"
PHASES = ("load", "prepare", "score before", *TRAINING, "score after", "write")
Measured = list[dict[str, Any]]
Value = Callable[[dict[str, Any]], float]


def training(one: dict[str, Any], clock: str) -> float:
    """Seconds of the training loop."""
    return sum(one[clock].get(phase, 0.0) for phase in TRAINING)


def whole(one: dict[str, Any], clock: str) -> float:
    """Seconds of everything but imports."""
    return sum(one[clock].values())


def summary(found: Measured, clock: str) -> dict[str, float | None]:
    """The ratios that are claimed, geometric means over cases; ``None`` where what they need was not measured.

    Against TRL counts the faster of its forms that were measured.
    """
    every = cases(found)
    short, long = ([case for case in every if case[0]["kind"] == kind] for kind in ("short", "long"))

    def seconds(one: dict[str, Any]) -> float:
        return training(one, clock)

    return {
        "rows_vs_trl_short": _mean(ratio(case, rival(case, clock), "seqft", seconds) for case in short),
        "rows_vs_trl_long": _mean(ratio(case, rival(case, clock), "seqft", seconds) for case in long),
        "peak_vs_trl_short": _mean(ratio(case, "seqft", rival(case, clock), lambda one: one["peak"]) for case in short),
        "seekr_vs_seqft": _mean(ratio(case, "seekr", "seqft", lambda one: whole(one, clock)) for case in every),
    }


def cases(found: Measured) -> list[Measured]:
    """The measurements of each shape, kind of weights and set of rows."""
    kept: dict[tuple[str, str, str], Measured] = {}
    for one in found:
        kept.setdefault((one["shape"], one["weights"], one["set"]), []).append(one)
    return list(kept.values())


def rival(case: Measured, clock: str) -> str:
    """TRL's form that trains fastest."""
    forms = sorted({one["variant"] for one in case if one["variant"].startswith("trl")})
    return min(forms, key=lambda form: _median(case, form, lambda one: training(one, clock)), default="trl")


def ratios(case: Measured, over: str, under: str, value: Value) -> list[float]:
    """Of two variants' values, round by round: the machine's drift is the same on both sides of each."""
    tops, bottoms = ({one["round"]: value(one) for one in case if one["variant"] == name} for name in (over, under))
    return [tops[number] / bottoms[number] for number in sorted(tops.keys() & bottoms.keys())]


def ratio(case: Measured, over: str, under: str, value: Value) -> float | None:
    """The median of the rounds' ratios."""
    found = ratios(case, over, under, value)
    return statistics.median(found) if found else None


def record(
    source: Path | None, runs: Measured, yardsticks: Measured, case: dict[str, Any], file: Path = BEFORE
) -> None:
    """Commits to a file what the whole run takes at the commit that is measured, beside TRL at the same time."""
    place = source or Path(__file__).resolve().parents[1] / "src"
    about = {"commit": _commit(place), "date": datetime.date.today().isoformat(), "machine": machine()}
    file.write_text(json.dumps({**about, "case": case, "runs": runs, "yardsticks": yardsticks}, indent=1) + "\n")
    print(f"{file}: run of commit {about['commit']}", file=sys.stderr)


def before_ratio(
    run: dict[str, Any], found: Measured, case: dict[str, Any], clock: str, file: Path = BEFORE
) -> float | None:
    """How much faster the whole run is than the recorded one.

    Both are divided by what TRL took for the same rows at the same time, so that a machine that is faster today, or
    another one, does not count; TRL is the same version on both sides.
    """
    if not file.is_file():
        return _cannot(f"{file} is absent; --record-before writes it")
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["case"] != case:
        other = ", ".join(f"{key} {before['case'].get(key)}" for key in case if before["case"].get(key) != case[key])
        return _cannot(f"it was recorded with {other}")
    first = next((one["set"] for one in found if one["kind"] == "short"), None)
    now = [training(one, clock) for one in found if one["variant"] == "trl" and one["set"] == first]
    if not now:
        return _cannot("TRL on short answers was not measured")
    then = [training(one, clock) for one in before["yardsticks"]]
    was = statistics.median(whole(one, clock) for one in before["runs"]) / statistics.median(then)
    return round(was / (whole(run, clock) / statistics.median(now)), 4)


def markdown(
    given: argparse.Namespace, found_ratios: dict[str, Any], found: Measured, run: dict[str, Any] | None
) -> str:
    """Ratios, a table of every case, and where the time goes."""
    command = shlex.join(["python", "benchmarks/throughput.py", *sys.argv[1:]])
    lines = [
        "# Training speed beside TRL's SFTTrainer",
        "",
        f"`{command}`, commit {_commit(Path(__file__).parent)}.",
        "",
    ]
    lines += _table(["ratio", "value"], [[f"`{key}`", _number(value)] for key, value in found_ratios.items()])
    for case in cases(found):
        lines += ["", *_case(case, given.clock)]
    if run is not None:
        lines += ["", f"The whole run of five tasks: {whole(run, given.clock):.1f} s."]
    lines += ["", f"Batch {given.batch}, {given.precision}, at most {given.length} tokens, {given.rounds} rounds."]
    return "\n".join([*lines, "", f"Machine: {machine()}.", ""])


def _case(case: Measured, clock: str) -> list[str]:
    one = case[0]
    variants = list(dict.fromkeys(each["variant"] for each in case))

    def row(variant: str) -> list[str]:
        seconds = _median(case, variant, lambda each: training(each, clock))
        gains = ratios(case, "trl", variant, lambda each: training(each, clock))
        gain = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})" if gains else ""
        peak, rest = (_median(case, variant, lambda each, key=key: each[key]) for key in ("peak", "resident"))
        speeds = [f"{one['rows'] / seconds:.2f}", f"{one['tokens'] / seconds:.0f}"]
        return [variant, f"{seconds:.1f}", *speeds, gain, f"{peak / 1e6:.0f}", f"{(peak - rest) / 1e6:.0f}"]

    def spent(variant: str) -> list[str]:
        return [variant, *(f"{_median(case, variant, lambda e, p=p: e[clock].get(p, 0.0)):.1f}" for p in PHASES)]

    title = f"## {one['shape']}, {one['weights']}, {one['set']}: {one['rows']} rows, {one['tokens']} useful tokens"
    speed = [
        "trainer",
        "training, s",
        "rows/s",
        "useful tokens/s",
        "rows/s over TRL's",
        "peak MB",
        "over the model, MB",
    ]
    phases = _table(["seconds", *PHASES], [spent(variant) for variant in variants])
    return [title, "", *_table(speed, [row(variant) for variant in variants]), "", *phases]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _median(case: Measured, variant: str, value: Value) -> float:
    return statistics.median(value(one) for one in case if one["variant"] == variant)


def _mean(found: Iterable[float | None]) -> float | None:
    values = [value for value in found if value is not None]
    return round(statistics.geometric_mean(values), 4) if values else None


def _cannot(reason: str) -> None:
    print(f"run_vs_before is left out: {reason}", file=sys.stderr)


def _commit(place: Path) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")

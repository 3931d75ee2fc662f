"""What a stage of a study found: the raw scores beside the plan, a table with paired differences, and a picture."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from study_plan import Plan, Run, Stage

from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.evaluation.statistics import Answered, Tally
from seekr_cl.report.comparison import RunRecord, compare, read_run
from seekr_cl.report.comparison_plot import plot_runs
from seekr_cl.system.sizes import size

RESAMPLES = 4000


def finished(folder: Path) -> bool:
    """Whether a run has learned all of its tasks."""
    try:
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        matrix = ScoreMatrix.from_json(scores, str(folder))
    except (OSError, ValueError, KeyError):
        return False
    return matrix.joint or matrix.learnt == len(matrix.tasks)


def paired(one: list[RunRecord], other: list[RunRecord]) -> tuple[float, float, float]:
    """The second's OP less the first's, in pairs of one seed, with a 95% interval over seeds and examples."""
    low, high = interval([(_answers(b).last, _answers(a).last) for a, b in zip(one, other, strict=True)])
    return mean(b.matrix.op - a.matrix.op for a, b in zip(one, other)), low, high


def mean_op(runs: list[RunRecord]) -> tuple[float, float, float]:
    """The mean OP, with a 95% interval over seeds and examples."""
    return mean(run.matrix.op for run in runs), *interval([(_answers(run).last,) for run in runs])


def interval(pairs: Sequence[tuple[Sequence[Tally], ...]]) -> tuple[float, float]:
    """Of the mean over seeds of what the first has, less the second where there is one, at 95%.

    A replicate draws examples within each task, the same for all runs, and then seeds, both with replacement; with few
    seeds that is the best that can be had and still too narrow.
    """
    rng = np.random.default_rng(0)
    found_SR = np.zeros((len(pairs), RESAMPLES))
    tasks = len(pairs[0][0])
    for task in range(tasks):
        count = len(pairs[0][0][task])
        weights_RN = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)
        for seed, sides in enumerate(pairs):
            for sign, side in zip((1, -1), sides):
                found_SR[seed] += sign * _scores(side[task], weights_RN) / tasks
    drawn_RS = rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))
    low, high = np.quantile(np.take_along_axis(found_SR.T, drawn_RS, axis=1).mean(1), [0.025, 0.975])
    return float(low), float(high)


def best_row(stage: Stage, runs: Path) -> str | None:
    """The row of a sweep with the highest mean OP, of equal ones the first; ``None`` until all its runs are made."""
    if not all(finished(run.folder(runs)) for run in stage.runs()):
        return None
    scores = {row: mean(one.matrix.op for one in _seeds(stage, row, runs).values()) for row in stage.rows}
    return max(stage.rows, key=lambda row: scores[row])


def settings_of(plan: Plan, row: str, runs: Path) -> dict[str, Any]:
    """A row's settings, with the rate that a sweep has found.

    Raises:
        SystemExit: if the sweep is not finished.
    """
    settings, sweep = dict(plan.rows[row]), plan.sweep_of(row)
    if sweep is not None:
        best = best_row(sweep, runs)
        if best is None:
            raise SystemExit(f"error: row {row!r} needs the best rate of stage {sweep.name}; make that stage first")
        settings["learning_rate"] = sweep.rates[best]
    return settings


def _answers(run: RunRecord) -> Answered:
    if run.answered is None:
        raise SystemExit(f"error: {run.name}: its predictions are missing")
    return run.answered


def _scores(tally: Tally, weights_RN: Any) -> Any:
    return tally.combine(weights_RN @ tally.columns_NC, len(tally))


def write_stage(stage: Stage, plan: Plan, runs: Path, target: Path) -> str:
    """Writes ``STAGE.md``, ``STAGE.png`` and ``raw/``; a row counts the seeds that it and the compared row both have.

    Returns:
        A line that says how much of the stage there is.
    """
    there = {row: _seeds(stage, row, runs) for row in stage.rows}
    done = {row: seeds for row, seeds in there.items() if seeds}
    whole = sum(map(len, done.values()))
    said = f"{stage.name}: {whole} of {len(stage.runs())} runs"
    if not done:
        return said
    lines = [f"# {stage.question}", "", f"- **Can see**: {stage.sees}", f"- **Settled by**: {stage.settled}", ""]
    lines += [*_table(stage, done), "", *_best(stage, runs), *_settings(stage, plan, runs, whole)]
    for seeds in done.values():
        for seed, record in seeds.items():
            kept = target / "raw" / stage.stream / f"{Path(record.name).name}.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(record.name) / "scores.json", kept)
            assert record.scores["seed"] == seed
    (target / f"{stage.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = compare([Path(record.name) for seeds in done.values() for record in seeds.values()])
    names = {record.name: row for row, seeds in done.items() for record in seeds.values()}
    for method in content["methods"]:
        method["method"] = names[method["runs"][0]]
    plot_runs(content, target / f"{stage.name}.png")
    return said


def _seeds(stage: Stage, row: str, runs: Path) -> dict[int, RunRecord]:
    folders = {seed: Run(stage.stream, row, seed).folder(runs) for seed in stage.seeds}
    return {seed: read_run(folder) for seed, folder in folders.items() if finished(folder)}


def _table(stage: Stage, done: dict[str, dict[int, RunRecord]]) -> list[str]:
    first = next(iter(next(iter(done.values())).values()))
    tasks = first.matrix.tasks
    columns = ["row", "seeds", "OP", "BWT", f"OP against {stage.against}", "steps", "training, s", "memory", *tasks]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    base = done.get(stage.against, {})
    for row, seeds in done.items():
        records = list(seeds.values())
        shared = sorted(seeds.keys() & base.keys())
        against = "-"
        if row != stage.against and shared:
            value, low, high = paired([base[seed] for seed in shared], [seeds[seed] for seed in shared])
            against = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
        steps = [sum(task["optimizer_steps"] for task in record.scores.get("training", [])) for record in records]
        finals = [dict(zip(record.matrix.tasks, record.matrix.rows[-1])) for record in records]
        cells = [
            row,
            ", ".join(map(str, seeds)),
            _spread([record.matrix.op for record in records]),
            _spread([record.matrix.bwt for record in records]),
            against,
            f"{mean(steps):.0f}",
            f"{mean(record.scores['seconds'] for record in records):.0f}",
            size(mean(record.scores["memory_bytes"] for record in records)),
            *(f"{mean(final[task] for final in finals):.1f}" for task in tasks),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    base_row = first.scores.get("base")
    if isinstance(base_row, dict | list):
        lines.append("")
        lines.append(f"The base model before any task: {json.dumps(base_row)}")
    return lines


def _best(stage: Stage, runs: Path) -> list[str]:
    """Of a sweep, which rate is best and by how much."""
    if not stage.rates:
        return []
    best = best_row(stage, runs)
    if best is None:
        return ["The best rate is named when all runs are made.", ""]
    records = {row: list(_seeds(stage, row, runs).values()) for row in stage.rows}
    value, low, high = mean_op(records[best])
    lines = [f"**Best learning rate: {stage.rates[best]:g}**, mean OP {value:.1f} [{low:.1f}, {high:.1f}]."]
    for row in stage.rows:
        if row != best:
            value, low, high = paired(records[best], records[row])
            lines.append(f"At {stage.rates[row]:g} it is {value:+.1f} [{low:+.1f}, {high:+.1f}].")
    if best in (min(stage.rates, key=stage.rates.__getitem__), max(stage.rates, key=stage.rates.__getitem__)):
        lines.append("It is the last of the rates on its side, so a better one may lie beyond.")
    return [*lines, ""]


def _spread(values: list[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f} ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else f"{known[0]:.1f}"


def _found(plan: Plan, row: str, runs: Path) -> float | None:
    """The rate of a row that a sweep has decided."""
    sweep = plan.sweep_of(row)
    best = None if sweep is None else best_row(sweep, runs)
    return None if sweep is None or best is None else sweep.rates[best]


def _settings(stage: Stage, plan: Plan, runs: Path, whole: int) -> list[str]:
    lines = [
        f"{whole} of {len(stage.runs())} runs are made. OP, BWT: mean (least to most) over seeds. Differences are",
        "paired over seeds and examples, with a 95% bootstrap interval over both. Seconds: of training.",
        "",
        "```bash",
        f"python benchmarks/study.py run {plan.path} --stage {stage.name}",
        "```",
        "",
    ]
    for row in stage.rows:
        given, rate = dict(plan.rows[row]), _found(plan, row, runs)
        given |= {} if rate is None else {"learning_rate": f"{rate:g}, {given['learning_rate']}"}
        lines.append(f"- `{row}`: " + ", ".join(f"`{key}: {value}`" for key, value in given.items()))
    for run in stage.runs():
        ledger = run.folder(runs) / "run.json"
        if ledger.is_file():
            about = json.loads(ledger.read_text(encoding="utf-8"))
            versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
            return [*lines, "", f"Machine: {about.get('machine')}, one thread a run; {versions}."]
    return lines

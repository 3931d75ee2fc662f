"""Verdicts made of what lies in folders: of a run, of two evaluations, of one learning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.evaluation.change import FEW, Change, Predictions, format_change, paired_change, read_predictions
from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.evaluation.statistics import RESAMPLES, Interval, Tally, paired_interval
from seekr_cl.report.own_files import read_own
from seekr_cl.report.verdict import CONFIDENCE, MAX_DROP, Cost, Line, Verdict
from seekr_cl.tasks.task import safe_name

Compared = tuple[Tally, Tally, Change]
"""A task's answers before and after, and its change."""
SINCE = ("learned", "previous")
"""What an old task's score in a run is compared with: right after it was learned, or before the last task."""


def of_run(
    run: Path,
    *,
    max_drop: float = MAX_DROP,
    drops: Mapping[str, float] | None = None,
    confidence: float = CONFIDENCE,
    since: str = "learned",
    scores: dict[str, Any] | None = None,
    resamples: int = RESAMPLES,
) -> Verdict:
    """The verdict on a run's last model.

    Args:
        run: the folder of ``seekr run``; it need not be done.
        max_drop: points that an old task may lose.
        drops: other values of single tasks.
        confidence: of the intervals.
        since: one of ``SINCE``.
        scores: the content of ``scores.json``, where it is not written yet.
        resamples: of the bootstrap.

    Raises:
        DataError: if the folder holds no scores of a learned task.
        ConfigError: if ``drops`` name a task that is not compared.
    """
    scores = _read_scores(run / "scores.json") if scores is None else scores
    matrix = ScoreMatrix.from_json(scores, str(run / "scores.json"))
    if not matrix.rows:
        raise DataError(f"{run / 'scores.json'}: no task has been learned yet; continue with seekr run --resume")
    drops = drops or {}
    stages = _stages(run, matrix)
    last = len(matrix.rows) - 1
    lines, notes = list[Line](), list[str]()
    compared: list[Compared] = []

    def compare(task: str, kind: str, metric: str, scored: tuple[float | None, float], early: int) -> None:
        before, after = scored
        allowed = drops.get(task, max_drop)
        slug = safe_name(task)
        try:
            both = [read_predictions(stages[stage] / f"{slug}.jsonl", metric) for stage in (early, last + 1)]
            if abs(both[1].tally.score - after) > 1e-6 or (before is None or abs(both[0].tally.score - before) > 1e-6):
                raise DataError(f"{task}: the predictions do not give the scores of scores.json")
            change = paired_change(both[0], both[1], level=confidence, resamples=resamples)
        except DataError as error:
            notes.append(f"no interval for {task}: {error}")
            moved = None if before is None else after - before
            outcome = "unsure"
            if kind == "new":
                outcome = "learned" if moved is not None and moved > 0 else "not learned"
            lines.append(Line(task, kind, metric, after, before, moved, outcome=outcome, max_drop=allowed))
            return
        if kind == "old":
            compared.append((both[0].tally, both[1].tally, change))
        lines.append(Line.of(task, kind, metric, change, allowed, **more_of(both[0], both[1], confidence)))

    for place in range(0 if matrix.joint else last):
        early = place if since == "learned" else last - 1
        compare(
            matrix.tasks[place], "old", matrix.metrics[place],
            (matrix.rows[early][place], matrix.rows[last][place]), early + 1,
        )  # fmt: skip
    for probe, values in _probes(scores, matrix).items():
        metric = _metric_of_probe(scores, probe)
        if len(values) == len(stages):
            compare(probe, "skill", metric, (values[0], values[-1]), 0)
            continue
        # Left out, what was lost of it would pass unseen.
        notes.append(
            f"probe '{probe}': {len(values)} scores for {len(stages)} models, so nothing says whether it was kept; "
            "run the stream again"
        )
        first, allowed = values[0] if values else None, drops.get(probe, max_drop)
        lines.append(Line(probe, "skill", metric, None, first, outcome="unsure", max_drop=allowed))
    for place in range(0 if matrix.joint else last, matrix.learnt):
        before = None if matrix.base is None else matrix.base[place]
        compare(matrix.tasks[place], "new", matrix.metrics[place], (before, matrix.rows[last][place]), 0)
    require_known(drops, lines)
    return Verdict(
        tuple(lines),
        "tests",
        max_drop,
        confidence,
        mean_change(compared, confidence, resamples),
        cost_of(scores),
        tuple(notes),
    )


def _stages(run: Path, matrix: ScoreMatrix) -> list[Path]:
    """The folders of predictions: of the base model, then one a row."""
    names = ["all"] if matrix.joint else [safe_name(task) for task in matrix.tasks]
    done = [run / "evaluations" / f"{number:02d}-{name}" for number, name in enumerate(names, 1)]
    return [run / "evaluations" / "00-base", *done[: len(matrix.rows)]]


def _probes(scores: Mapping[str, Any], matrix: ScoreMatrix) -> dict[str, list[float]]:
    """Scores of what is never trained on; none of a probe that the run tests and has no scores of."""
    tests = scores.get("tests")
    tested = [name for name in tests if name not in matrix.tasks] if isinstance(tests, dict) else []
    return {name: [] for name in tested} | matrix.extra


def _metric_of_probe(scores: Mapping[str, Any], probe: str) -> str:
    try:
        return str(scores["tests"][probe]["metric"])
    except (KeyError, TypeError):  # of former versions, which wrote none
        return "exact_match"


def more_of(before: Predictions, after: Predictions, level: float) -> dict[str, Any]:
    """What a line has beside its score: the share of answers with a valid format, where any has none."""
    found = format_change(before, after, level=level)
    return {} if found is None else {"format": found}


def require_known(drops: Mapping[str, float], lines: Sequence[Line]) -> None:
    """Refuses an allowed drop of a task that is not compared, which would guard nothing.

    Raises:
        ConfigError: naming it and those that are.
    """
    known = [line.task for line in lines if line.kind != "new"]
    for task in drops:
        if task not in known:
            raise ConfigError(f"--task {task}: is not compared{nearest(task, known)} (known: {', '.join(known)})")


def mean_change(compared: Sequence[Compared], level: float, resamples: int) -> tuple[float, tuple[float, float]] | None:
    """Mean change of tasks and its interval; None without any."""
    if not compared:
        return None
    before, after = ([both[side] for *both, _ in compared] for side in (0, 1))
    found = paired_interval(before, after, level=level, resamples=resamples)
    changes = [change for *_, change in compared]
    value = sum(change.value for change in changes) / len(changes)
    if sum(change.changed or 0 for change in changes) < FEW:
        half = sum(((one.interval.high - one.interval.low) / 2) ** 2 for one in changes) ** 0.5 / len(changes)
        found = Interval(min(found.low, value - half), max(found.high, value + half))
    return round(value, 4), (found.to_json()[0], found.to_json()[1])


def cost_of(scores: Mapping[str, Any]) -> Cost:
    """What ``scores.json`` says of the cost."""
    made = scores.get("training")
    tasks = [one for one in made if isinstance(one, dict)] if isinstance(made, list) else []
    total, new, replay = (_sum(tasks, key) for key in ("optimizer_steps", "new_steps", "replay_steps"))
    more = None if not new or replay is None else replay / new
    size = scores.get("memory_bytes")
    return Cost(total, more, size if isinstance(size, int) else None)


def _sum(tasks: list[dict[str, Any]], key: str) -> int | None:
    counts = [count for one in tasks if isinstance(count := one.get(key), int)]
    return sum(counts) if counts and len(counts) == len(tasks) else None


def _read_scores(path: Path) -> dict[str, Any]:
    content = read_own(path)
    if "matrix" not in content and isinstance(content.get("tasks"), dict):
        raise DataError(f"{path.parent}: is an evaluation, not a run; give two of them with --before and --after")
    return content

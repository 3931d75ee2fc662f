"""Several runs side by side: methods over seeds, with intervals, tests, and what must not be compared."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.evaluation.predictions import read_answered
from seekr_cl.evaluation.scores import CONVENTIONS, ScoreMatrix
from seekr_cl.evaluation.statistics import (
    CONVENTION,
    Answered,
    Interval,
    aggregate_intervals,
    paired_test,
    seed_interval,
)
from seekr_cl.renamed import as_named_now
from seekr_cl.report.comparable import differences
from seekr_cl.report.measures import measures_of
from seekr_cl.report.own_files import read_own

AGGREGATES = ("op", "bwt", "bwt_over_n", "forgetting", "fwt", "plasticity")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run's folder, read.

    Attributes:
        name: the folder as it was named.
        matrix: its scores.
        scores: ``scores.json``.
        ledger: ``run.json``.
        answered: its answers, if its predictions are there.
    """

    name: str
    matrix: ScoreMatrix
    scores: dict[str, Any]
    ledger: dict[str, Any]
    answered: Answered | None


def read_run(folder: Path) -> RunRecord:
    """Reads what ``seekr run`` left in a folder.

    Raises:
        DataError: naming the file, if it is missing, damaged or has no scores of a learned task yet.
    """
    scores, ledger = _read(folder / "scores.json"), _read(folder / "run.json")
    matrix = ScoreMatrix.from_json(scores, str(folder / "scores.json"))
    try:
        known = [(one["name"], one["metric"], one["fingerprint"], one["test"]) for one in ledger["tasks"]]
        plain = isinstance(scores["method"]["name"], str) and isinstance(scores["seed"], int)
        plain = plain and all(isinstance(scores[key], int | float) for key in ("seconds", "memory_bytes"))
        if not plain or [name for name, *_ in known] != matrix.tasks:
            raise TypeError("method, seed, seconds, memory_bytes or tasks")
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}: scores.json and run.json do not fit each other ({error}); run it again") from error
    if not matrix.rows:
        raise DataError(f"{folder / 'scores.json'}: no task has been learned yet; continue with seekr run --resume")
    return RunRecord(str(folder), matrix, scores, ledger, read_answered(folder, matrix))


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """Everything ``seekr compare`` says, as JSON.

    Runs of one method with the same settings are its seeds; a method with other settings is another row. Tests compare
    each method with the first, on the seeds that both have.

    Raises:
        DataError: for a folder that holds no run, or is named twice.
    """
    doubled = [str(path) for path, times in Counter(folder.resolve() for folder in folders).items() if times > 1]
    if doubled:
        raise DataError(f"{doubled[0]}: named twice; name every run once")
    runs = [read_run(folder) for folder in folders]
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        # A run that is not done is no further seed of those that are.
        groups.setdefault(json.dumps([_setup(run), _missing(run)], sort_keys=True), []).append(run)
    labels = _labels([_setup(members[0]) for members in groups.values()])
    labels = [label + _missing(members[0]) for label, members in zip(labels, groups.values())]
    named = dict(zip(labels, groups.values()))
    not_comparable, notes = differences(
        {run.name: (run.scores, run.ledger) for run in runs},
        {label: [run.scores["seed"] for run in members] for label, members in named.items()},
    )
    notes += [
        f"{run.name}: predictions are missing or altered; no interval over examples" for run in runs if not run.answered
    ]
    first = next(iter(named))
    tests = [_test(first, named[first], label, members) for label, members in named.items() if label != first]
    plain = next((label for label, members in named.items() if members[0].scores["method"]["name"] == "seqft"), None)
    learned = [
        _test(plain, named[plain], label, members, "learnt")
        for label, members in named.items()
        if plain is not None and label != plain
    ]
    return {
        "conventions": CONVENTIONS,
        "interval_level": CONVENTION,
        "tasks": runs[0].matrix.tasks,
        "methods": [_row(label, members) for label, members in named.items()],
        "paired_tests": [test for test in tests if test is not None],
        "plasticity_tests": [test for test in learned if test is not None],
        "not_comparable": not_comparable,
        "notes": notes,
    }


def _setup(run: RunRecord) -> dict[str, Any]:
    """The method and its settings, and those of the training; of general data only that there is some."""
    training = {key: value for key, value in run.ledger.get("training", {}).items() if value is not None}
    return run.scores["method"] | {"training": training | ({"general": True} if "general" in training else {})}


def _missing(run: RunRecord) -> str:
    done, tasks = run.matrix.learnt, len(run.matrix.tasks)
    return "" if run.matrix.joint or done == tasks else f" ({done} of {tasks} tasks)"


def _row(label: str, runs: list[RunRecord]) -> dict[str, Any]:
    answers = [run.answered for run in runs if run.answered is not None]
    complete = len(answers) == len(runs) and all(one.sizes == answers[0].sizes for one in answers)
    intervals = aggregate_intervals(answers) if complete else {}
    row: dict[str, Any] = {
        "method": label,
        "name": runs[0].scores["method"]["name"],
        "runs": [run.name for run in runs],
        "seeds": [run.scores["seed"] for run in runs],
        "joint": runs[0].matrix.joint,
    }
    for key in AGGREGATES:
        values = [value for run in runs if (value := getattr(run.matrix, key)) is not None]
        row[key] = _number(values, intervals.get(key)) if len(values) == len(runs) else None
    row["tasks"] = {}
    for place, task in enumerate(runs[0].matrix.tasks[: runs[0].matrix.learnt]):
        finals = [dict(zip(run.matrix.tasks, run.matrix.rows[-1])).get(task) for run in runs]
        known = [value for value in finals if value is not None]
        same = complete and all(run.matrix.tasks == runs[0].matrix.tasks for run in runs)
        interval = aggregate_intervals([Answered([one.last[place]]) for one in answers])["op"] if same else None
        row["tasks"][task] = _number(known, interval)
    row["measures"] = measures_of([(Path(run.name), run.scores, run.matrix) for run in runs])
    row["learning_rates"] = _rates(runs)
    steps = [count for run in runs if (count := _steps(run)) is not None]
    row["steps"] = mean(steps) if len(steps) == len(runs) else None
    row["seconds"] = mean(run.scores["seconds"] for run in runs)
    row["memory_bytes"] = mean(run.scores["memory_bytes"] for run in runs)
    return row


_TRAINED = ("learning_rate", "optimizer_steps")


def _trained(run: RunRecord) -> list[dict[str, Any]]:
    """What each task was trained with; runs of former versions have no record of it."""
    tasks = run.scores.get("training")
    if not isinstance(tasks, list) or not all(isinstance(one, dict) and {*one} >= {*_TRAINED} for one in tasks):
        return []
    return tasks


def _rates(runs: list[RunRecord]) -> list[float]:
    """The learning rates of the tasks in order, each once."""
    return list(dict.fromkeys(task["learning_rate"] for run in runs for task in _trained(run)))


def _steps(run: RunRecord) -> int | None:
    """Optimizer steps of all tasks together."""
    return sum(task["optimizer_steps"] for task in _trained(run)) or None


def _number(values: list[float], interval: Interval | None) -> dict[str, Any]:
    if interval is None and len(values) > 1:
        interval = seed_interval(values)
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "values": values,
        "interval": interval and interval.to_json(),
    }


def _test(
    first: str, one: list[RunRecord], second: str, other: list[RunRecord], which: str = "last"
) -> dict[str, Any] | None:
    """The difference in OP on the seeds that both have; None where the tests are not the same.

    Of ``learnt`` answers in place of the ``last`` it is the difference in plasticity.
    """
    ours, theirs = ({run.scores["seed"]: run for run in runs} for runs in (one, other))
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    tested = [_tests(run) for pair in pairs for run in pair]
    answers = [(a.answered, b.answered) for a, b in pairs]
    if not pairs or any(tests != tested[0] for tests in tested):
        return None
    if which == "learnt" and any(run.answered and not run.answered.learnt for pair in pairs for run in pair):
        return None
    left = [_ordered(a, tested[0], which) for a, _ in pairs if a.answered]
    right = [_ordered(b, tested[0], which) for _, b in pairs if b.answered]
    if len(left) < len(answers) or len(right) < len(answers):
        return None
    found = paired_test(left, right)
    return {
        "first": first,
        "second": second,
        "seeds": seeds,
        "difference": found.value,
        "interval": found.interval.to_json(),
        "p": found.p,
        "examples": found.examples,
        "exact": found.exact,
    }


def _tests(run: RunRecord) -> dict[str, Any]:
    return {one["name"]: (one["metric"], one["test"]) for one in run.ledger["tasks"][: run.matrix.learnt]}


def _ordered(run: RunRecord, tests: dict[str, Any], which: str) -> list[Any]:
    """Tallies in one order of tasks, whatever the run's was."""
    assert run.answered is not None
    by_name = dict(zip(run.matrix.tasks, getattr(run.answered, which)))
    return [by_name[name] for name in sorted(tests)]


def _labels(methods: list[dict[str, Any]]) -> list[str]:
    """Names; where several methods share one, with the settings that tell them apart."""
    flat = [_flat(method) for method in methods]
    counts = Counter(method["name"] for method in methods)
    labels = []
    for own, method in zip(flat, methods):
        label = str(method["name"])
        if counts[method["name"]] > 1:
            peers = [other for other, one in zip(flat, methods) if one["name"] == method["name"]]
            keys = sorted({key for peer in peers for key in peer | own if peer.get(key) != own.get(key)})
            set_here = [(key, own[key]) for key in keys if own.get(key) is not None]
            told = ", ".join(
                f"{key.removeprefix('settings.').removeprefix('training.')}={is_}" for key, is_ in set_here
            )
            label += f" ({told})" if told else ""
        labels.append(label)
    return labels


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _read(path: Path) -> dict[str, Any]:
    return as_named_now(read_own(path))

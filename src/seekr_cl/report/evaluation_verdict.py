"""The verdict on two evaluations: the model in use, and the one that is to replace it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.evaluation.change import Predictions, paired_change, read_predictions, unpaired_change
from seekr_cl.evaluation.general import computed_otherwise
from seekr_cl.evaluation.statistics import RESAMPLES
from seekr_cl.renamed import as_named_now
from seekr_cl.report.own_files import read_own
from seekr_cl.report.verdict import CONFIDENCE, MAX_DROP, Line, Verdict
from seekr_cl.report.verdicts import Compared, mean_change, more_of, require_known
from seekr_cl.tasks.task import safe_name

SCORES = "scores.json"
GENERAL = "general.json"
_ASKED = ("engine", "dtype", "decoding", "max_length", "prompt_boundary", "strip_thinking", "chat_template_kwargs")
"""What may change answers although the model does not."""
_ALIKE = ("harness", "data", "limit", "seed")


def of_evaluations(
    before: Path,
    after: Path,
    *,
    max_drop: float = MAX_DROP,
    drops: Mapping[str, float] | None = None,
    general_drop: float | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    complete: bool = False,
) -> Verdict:
    """Compares what ``seekr evaluate`` left of two models.

    Args:
        before: the folder of the model in use.
        after: the folder of the one that is to replace it.
        max_drop: points that a task may lose.
        drops: other values of single tasks.
        general_drop: points that a benchmark of general ability may lose; default ``max_drop``.
        confidence: of the intervals.
        resamples: of the bootstrap.
        complete: refuse a task or benchmark of ``before`` that ``after`` does not have alike, as what was left out may
            be what was lost; else a note says so.

    Raises:
        DataError: if a folder holds no evaluation, both are one or of other tests, or something is left out.
        ConfigError: if ``drops`` name a task that is not compared.
    """
    require_two_folders(before, after)
    earlier, later = _tasks(before), _tasks(after)
    drops = drops or {}
    missing = [task for task in earlier["tasks"] if task not in later["tasks"]]
    if missing and complete:
        raise DataError(
            f"{after}: has no task {', '.join(missing)}, which {before} has; evaluate all of its tasks there too"
        )
    allowed = max_drop if general_drop is None else general_drop
    general, said = _general(before, after, allowed, drops, confidence, complete)
    lines: list[Line] = []
    compared: list[Compared] = []
    notes = _settings(before, after)
    for task in later["tasks"]:
        metric = str(later["tasks"][task]["metric"])
        if task not in earlier["tasks"]:
            score, count = later["tasks"][task]["score"], later["tasks"][task]["examples"]
            lines.append(Line(task, "new", metric, float(score), examples=int(count)))
            continue
        _require_same_test(task, earlier["tasks"][task], later["tasks"][task], before, after)
        sides = ((before, earlier), (after, later))
        both = [_predictions(folder, task, metric, content["tasks"][task]) for folder, content in sides]
        change = paired_change(both[0], both[1], level=confidence, resamples=resamples)
        more = more_of(both[0], both[1], confidence)
        lines.append(Line.of(task, "old", metric, change, drops.get(task, max_drop), **more))
        compared.append((both[0].tally, both[1].tally, change))
    if missing:
        notes.append(f"not evaluated after: {', '.join(missing)}")
    lines += general
    notes += said
    if not lines:
        raise DataError(f"{after}: no task or benchmark is in both evaluations; evaluate both on the same tests")
    require_known(drops, lines)
    order = ("old", "general", "new")
    lines.sort(key=lambda line: order.index(line.kind))
    mean = mean_change(compared, confidence, resamples)
    return Verdict(tuple(lines), "tests", max_drop, confidence, mean, notes=tuple(notes))


def _predictions(folder: Path, task: str, metric: str, scored: Mapping[str, Any]) -> Predictions:
    """All of a task's predictions: of those that are gone nobody knows whether they were the ones that were lost."""
    found = read_predictions(folder / f"{safe_name(task)}.jsonl", metric)
    if len(found.asked) != scored["examples"]:
        raise DataError(
            f"{found.path}: {len(found.asked)} predictions, where {folder / SCORES} has {scored['examples']} examples; "
            "evaluate again"
        )
    return found


def require_two_folders(before: Path, after: Path) -> None:
    """Refuses one folder as both evaluations, in which nothing can have been lost.

    Raises:
        DataError: naming it.
    """
    if before.resolve() == after.resolve():
        raise DataError(f"{before}: is both evaluations; name another folder for the one that is compared with it")


def check_before(before: Path) -> None:
    """Makes sure that a folder can be compared with, before hours of an evaluation.

    Raises:
        DataError: if it holds no evaluation.
    """
    content = _tasks(before)
    if not content["tasks"] and not (before / GENERAL).is_file():
        raise DataError(f"{before}: holds no finished evaluation; name the --output folder of a seekr evaluate")


def check_tests(before: Path, tests: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes sure that tasks are tested as they were before.

    Args:
        before: the folder of the former evaluation.
        tests: ``metric`` and ``sha256`` of each task.

    Raises:
        DataError: naming the task that is tested otherwise.
    """
    former = _tasks(before)["tasks"]
    for task, test in tests.items():
        if task in former:
            _require_same_test(task, former[task], test, before, None)


def _tasks(folder: Path) -> dict[str, Any]:
    """``scores.json``; without tasks where only general ability was evaluated."""
    path = folder / SCORES
    if not path.is_file() and (folder / GENERAL).is_file():
        return {"tasks": {}, "evaluation": {}}
    content = read_own(path, "evaluate")
    tasks = content.get("tasks")
    if not isinstance(tasks, dict):
        if "matrix" in content:
            raise DataError(f"{folder}: is the folder of a run; name it alone, or folders of seekr evaluate")
        raise DataError(f"{path}: not the scores of an evaluation; name the --output folder of a seekr evaluate")
    for name, one in tasks.items():
        if not isinstance(one, dict) or not {"metric", "score", "examples", "sha256"} <= one.keys():
            raise DataError(f"{path}: task '{name}' has no metric, score, examples and sha256; evaluate again")
    return content | {"evaluation": as_named_now(content.get("evaluation") or {})}


def _require_same_test(
    task: str, earlier: Mapping[str, Any], later: Mapping[str, Any], before: Path, after: Path | None
) -> None:
    where = "now" if after is None else f"in {after}"
    for key, what in (("metric", "metric"), ("sha256", "test set (prompts, answers or max_new_tokens)")):
        if earlier[key] != later[key]:
            told = f" ({earlier[key]} against {later[key]} {where})" if key == "metric" else ""
            raise DataError(f"{before}: task '{task}' has another {what}{told}; evaluate both models alike")


def _settings(before: Path, after: Path) -> list[str]:
    earlier, later = (_tasks(folder)["evaluation"] for folder in (before, after))
    if not earlier or not later:
        return []
    return [
        f"evaluated with another {key}: {earlier.get(key)} before, {later.get(key)} after"
        for key in _ASKED
        if earlier.get(key) != later.get(key)
    ]


def _general(
    before: Path, after: Path, max_drop: float, drops: Mapping[str, float], level: float, complete: bool
) -> tuple[list[Line], list[str]]:
    """General ability, where both folders have it."""
    if complete and (before / GENERAL).is_file() and not (after / GENERAL).is_file():
        raise DataError(f"{after}: has no {GENERAL}, which {before} has; evaluate with --general there too")
    if not all((folder / GENERAL).is_file() for folder in (before, after)):
        return [], []
    earlier, later = read_own(before / GENERAL, "evaluate"), read_own(after / GENERAL, "evaluate")
    other = [key for key in _ALIKE if earlier.get(key) != later.get(key)]
    if other:
        raise DataError(f"{after / GENERAL}: general ability was evaluated with another '{other[0]}'; evaluate alike")
    lines, notes = list[Line](), computed_otherwise(earlier, later)
    formerly, now = _benchmarks(before / GENERAL, earlier), _benchmarks(after / GENERAL, later)
    unlike = [name for name in now if not _alike(formerly.get(name), now[name])]
    lost = [name for name in formerly if name not in now or name in unlike]
    if lost and complete:
        raise DataError(
            f"{after / GENERAL}: general benchmark {', '.join(lost)} is missing, or has another metric, shots or "
            f"number of examples than in {before / GENERAL}; evaluate both models on the same benchmarks"
        )
    notes += [f"general benchmark {name} was evaluated otherwise before, or not at all" for name in unlike]
    notes += [f"general benchmark {name} was not evaluated after" for name in lost if name not in now]
    for name, task in now.items():
        if name in unlike:
            continue
        former, allowed = formerly[name], drops.get(name, max_drop)
        first, second = former["stderr"], task["stderr"]
        if first is None or second is None:
            notes.append(f"no interval for general benchmark {name}: it has no standard error")
            scores = task["score"], former["score"], task["score"] - former["score"]
            count = task["examples"]
            lines.append(
                Line(name, "general", task["metric"], *scores, examples=count, outcome="unsure", max_drop=allowed)
            )
            continue
        change = unpaired_change(former["score"], task["score"], (first, second), task["examples"], level=level)
        lines.append(Line.of(name, "general", task["metric"], change, allowed))
    if lines:
        notes.append("general benchmarks: unpaired intervals from the harness's standard errors, which are wider")
    return lines, notes


def _alike(former: Mapping[str, Any] | None, task: Mapping[str, Any]) -> bool:
    return former is not None and all(former[key] == task[key] for key in ("metric", "shots", "examples"))


def _benchmarks(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each benchmark of a ``general.json``, checked: such a file may be anybody's."""
    tasks = content.get("tasks")
    if not isinstance(tasks, dict):
        raise DataError(f"{path}: not the general ability of this library (it has no tasks); evaluate again")
    for name, task in tasks.items():
        task = task if isinstance(task, dict) else {}
        wrong = [key for key, fits in _FITS.items() if not fits(task.get(key))]
        if wrong:
            told = repr(task.get(wrong[0]))
            raise DataError(f"{path}: benchmark {name} has the {wrong[0]} {told}; evaluate general ability again")
    return tasks


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FITS: dict[str, Callable[[Any], bool]] = {
    "metric": lambda value: isinstance(value, str),
    "score": _is_number,
    "stderr": lambda value: value is None or (_is_number(value) and value >= 0),
    "shots": lambda value: isinstance(value, int) and value >= 0,
    "examples": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
}
"""What a benchmark must say of itself."""

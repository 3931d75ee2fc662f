"""Reads the folders of ``seekr run``, ``learn`` and ``evaluate`` into plain data, also those that are not done.

What makes a folder no run at all is an error. What is missing or damaged inside one is a note on the page: the rest of
a run is worth looking at, and a page that hides a gap would lie.
"""

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError, SeekrError
from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.memory.lineage import MANIFEST, Generation
from seekr_cl.report.html.data import Changes, RunData, Stage
from seekr_cl.report.html.examples import changes_between
from seekr_cl.report.html.heads import read_heads
from seekr_cl.report.html.memory_bytes import read_memory
from seekr_cl.report.html.training_logs import (
    LOG,
    read_recorded,
    read_trainer_log,
    recorded_logs,
    recorded_phases,
)
from seekr_cl.report.verdict import VERDICT, Verdict
from seekr_cl.report.verdicts import of_run
from seekr_cl.system import reading
from seekr_cl.system.paths import in_order
from seekr_cl.system.run_record import RECORD, beside
from seekr_cl.system.run_state import SILENT, RunState, line, seen_at, time_text
from seekr_cl.system.visible import one_line
from seekr_cl.tasks.task import safe_name

LEDGER, SCORES, PARTIAL, GENERAL = "run.json", "scores.json", "partial.json", "general.json"


def gather(folders: Sequence[Path]) -> list[RunData]:
    """Everything that a report says, folder by folder.

    Args:
        folders: of ``seekr run``, ``learn`` or ``evaluate``.

    Raises:
        DataError: naming the folder that is none of these, is damaged or is named twice.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise DataError(f"{folder}: named twice; name every folder once")
        seen[folder.resolve()] = folder
    return [gather_one(folder) for folder in folders]


def gather_one(folder: Path) -> RunData:
    """Everything that a report says of one folder."""
    if not folder.exists() and beside(folder).is_file():
        return _learning(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; name the --output of seekr run, learn or evaluate")
    if (folder / LEDGER).is_file():
        return _run(folder)
    if any((folder / name).is_file() for name in (SCORES, PARTIAL, GENERAL)):
        return _evaluation(folder)
    if (folder / LOG).is_file():
        return _learning(folder)
    raise DataError(
        f"{folder}: holds no {LEDGER}, {SCORES} or {LOG}; name the --output of seekr run, learn or evaluate"
    )


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        DataError: naming it, if it is missing or damaged.
    """
    try:
        content = reading.read_json(path)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: damaged ({reason}); restore it from a copy or run it again") from error


def _run(folder: Path) -> RunData:
    ledger = read_object(folder / LEDGER)
    try:
        tasks = [(str(one["name"]), str(one["metric"])) for one in ledger["tasks"]]
        method = str(ledger["method"]["name"])
        probes = [str(one["name"]) for one in ledger.get("probes", [])]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / LEDGER}: not a {LEDGER} of this library ({error!r}); run it again") from error
    data = RunData(str(folder), "run", f"{method} over {len(tasks)} tasks")
    stages = _stages(folder, data.notes)
    data.stages = stages
    data.matrix = _matrix(folder, tasks, probes, stages, data.notes)
    learnt = data.matrix.learnt if data.matrix else 0
    data.done = learnt == len(tasks)
    events, recorded = read_recorded(folder, data.notes)
    data.state = "complete" if data.done else f"{learnt} of {len(tasks)} tasks learned so far"
    data.going = "" if data.done else _going(events)
    if data.matrix and data.matrix.rows:
        data.changes = _changes(folder, data.matrix, probes, data.notes)
    _memory(folder / "memory", data)
    data.logs = recorded_logs(events) or _models_logs(folder, stages, data.notes)
    data.phases = recorded_phases(events) or _stage_seconds(stages)
    if not recorded:
        data.notes.append(f"no {RECORD}: made by a former version, so the times of single phases are not known")
    data.verdict = _verdict(folder, data)
    data.settings = settings_of(ledger)
    data.versions = _versions(ledger)
    data.versions |= {"machine": str(ledger["machine"])} if ledger.get("machine") else {}
    data.command, data.folder = command_of(events) or (_command(ledger), "")
    data.facts = [("method", method), ("base model", str(ledger.get("model"))), ("seed", str(ledger.get("seed")))]
    seconds = sum(stage.seconds for stage in stages)
    data.facts += [("training", duration(seconds))] if seconds else []
    return data


def _verdict(folder: Path, data: RunData) -> Verdict | None:
    """What the folder holds, or what follows from its scores and predictions."""
    try:
        if (folder / VERDICT).is_file():
            return Verdict.read(folder / VERDICT)
        scored = data.kind == "run" and data.matrix and data.matrix.rows and (folder / SCORES).is_file()
        return of_run(folder) if scored else None
    except SeekrError as error:
        data.notes.append(f"verdict: {error}")
        return None


def _going(events: list[dict[str, Any]]) -> str:
    """What goes on now, and since when nothing has been heard of it."""
    if not events:
        return ""
    state, now = RunState.of(events), time.time()
    silent = now - state.updated
    since = f"; no event for {time_text(silent)}" if silent > SILENT and not state.ended else ""
    return line(state, seen_at(state, now)) + since


def _stages(folder: Path, notes: list[str]) -> list[Stage]:
    found = []
    places = in_order(path for path in (folder / "evaluations").glob("[0-9][0-9]*-*") if path.is_dir())
    for place in places:
        if not (place / SCORES).exists():
            continue
        try:
            content = read_object(place / SCORES)
            scores = {str(task): float(score) for task, score in content["scores"].items()}
            intervals = {
                str(task): (float(ends[0]), float(ends[1]))
                for task, ends in (content.get("intervals") or {}).items()
                if ends is not None
            }
            found.append(Stage(place.name.partition("-")[2], scores, intervals, float(content.get("seconds") or 0.0)))
        except (DataError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            notes.append(f"evaluation '{place.name}': {SCORES} is damaged ({_brief(error)})")
    return found


def _matrix(
    folder: Path, tasks: list[tuple[str, str]], probes: list[str], stages: list[Stage], notes: list[str]
) -> ScoreMatrix | None:
    """The run's matrix; before the first task, or where the file is damaged, from the stages' own scores."""
    path = folder / SCORES
    if path.is_file():
        try:
            return ScoreMatrix.from_json(read_object(path), str(path))
        except DataError as error:
            notes.append(str(error))
    names = [name for name, _ in tasks]
    matrix = ScoreMatrix(names, [metric for _, metric in tasks])
    if not stages or stages[0].name != "base" or not all(name in stage.scores for stage in stages for name in names):
        return None
    matrix.base = [stages[0].scores[name] for name in names]
    matrix.joint = len(stages) == 2 and stages[1].name == "all" and len(names) > 1
    for stage in stages[1 : 1 + (1 if matrix.joint else len(names))]:
        matrix.rows.append([stage.scores[name] for name in names])
    matrix.extra = {probe: [stage.scores[probe] for stage in stages if probe in stage.scores] for probe in probes}
    return matrix


def _changes(folder: Path, matrix: ScoreMatrix, probes: list[str], notes: list[str]) -> Changes:
    """Old tasks: right after learning against now; what was learned and the probes: the base model against now."""
    slugs = [safe_name(task) for task in matrix.tasks]
    names = ["all"] if matrix.joint else slugs
    places = [folder / "evaluations" / "00-base"]
    places += [folder / "evaluations" / f"{number:02d}-{name}" for number, name in enumerate(names, 1)]
    last = places[len(matrix.rows)]
    pairs = []
    for number, task in enumerate(matrix.tasks[: matrix.learnt], 1):
        own = places[0] if matrix.joint or number >= len(matrix.rows) else places[number]
        pairs.append((task, own, last))
    pairs += [(probe, places[0], last) for probe in probes]
    about = (
        "Before: of an earlier task, the answer right after it was learned; of the newest task and of probes, the base "
        "model's. After: the answer of the last model."
    )
    return changes_between(pairs, notes, about)


def _memory(folder: Path, data: RunData, expected: bool = True) -> list[Generation]:
    if not (folder / MANIFEST).is_file():
        if expected and data.matrix and data.matrix.rows:
            data.notes.append("memory: not there")
        return []
    data.memory, line = read_memory(folder, data.notes)
    data.heads = read_heads(folder, line, data.notes)
    return line


def _models_logs(folder: Path, stages: list[Stage], notes: list[str]) -> list[Any]:
    """The Trainer's logs beside the models, where these were kept."""
    found = []
    for place in in_order((folder / "models").glob("[0-9][0-9]*-*")):
        if (place / LOG).is_file():
            log = read_trainer_log(place / LOG, place.name.partition("-")[2], notes)
            found += [log] if log is not None else []
    learnt = sum(stage.name != "base" for stage in stages)
    if len(found) < learnt:
        notes.append(f"training: logs of {learnt - len(found)} of {learnt} tasks were removed with their models")
    return found


def _stage_seconds(stages: list[Stage]) -> list[tuple[str, dict[str, float]]]:
    return [(stage.name, {"train and score": stage.seconds}) for stage in stages if stage.seconds]


def _learning(folder: Path) -> RunData:
    data = RunData(str(folder), "learning", "one task learned")
    events, _ = read_recorded(folder, data.notes)
    data.done = folder.is_dir()
    begin: dict[str, Any] = next((one for one in events if one["event"] == "begin"), {})
    tasks = [str(task) for task in _list(begin.get("tasks"))]
    name = "+".join(tasks) or folder.name
    log = read_trainer_log(folder / LOG, name, data.notes) if data.done else None
    data.logs = recorded_logs(events) or ([log] if log else [])
    data.phases = recorded_phases(events)
    data.verdict = _verdict(folder, data) if data.done else None
    data.state = "complete" if data.done else "not complete"
    data.going = "" if data.done else _going(events)
    places = [Path(str(place)) for place in _list(begin.get("memory"))]
    # Unlike Path.is_file, this takes every name.
    memory = next(
        (place for place in [*(folder / one for one in places), *places] if os.path.isfile(place / MANIFEST)), None
    )
    if memory is not None:
        _memory(memory, data)
        own = [one for one in data.memory.lineage if _is(one["model_folder"], folder)] if data.memory else []
        if data.memory and not own and data.done:
            data.notes.append("memory: has gone on, or was rolled back, since this model was written")
        elif data.memory and own and own[-1] is not data.memory.lineage[-1]:
            later = data.memory.lineage[-1]["label"]
            data.notes.append(f"memory: shown as it is now, {later}; this model was written at {own[-1]['label']}")
        _describe_learning(data, own[-1] if own else None)
    elif data.done:
        data.notes.append("memory: not where it was when the task was learned, so its bytes and heads are not shown")
    data.title = f"{'learned' if data.done else 'learning'} {one_line(name, 60)}"
    if begin:
        data.facts = [(key, str(begin[key])) for key in ("method", "model", "seed") if begin.get(key) is not None]
        data.settings = flat(begin.get("settings") or {})
        data.versions |= _versions(begin)
    data.command, data.folder = command_of(events) or ("", "")
    return data


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _versions(content: dict[str, Any]) -> dict[str, str]:
    versions = content.get("versions")
    return {str(key): str(value) for key, value in versions.items()} if isinstance(versions, dict) else {}


def _is(place: Any, folder: Path) -> bool:
    return isinstance(place, str) and Path(place).resolve() == folder.resolve()


def _describe_learning(data: RunData, own: dict[str, Any] | None) -> None:
    if own is None:
        return
    data.settings = settings_of({"method": own["settings"]})
    data.versions |= {str(key): str(value) for key, value in own["versions"].items()}
    data.facts = [("method", str(own["method"])), ("written", str(own["written"]))]


def _evaluation(folder: Path) -> RunData:
    data = RunData(str(folder), "evaluation", "an evaluation")
    path = next((folder / name for name in (SCORES, PARTIAL) if (folder / name).is_file()), None)
    if path is not None:
        content = read_object(path)
        data.done = path.name == SCORES
        data.state = "complete" if data.done else "not complete; continue with --resume"
        try:
            for name, one in content["tasks"].items():
                low, high = one["interval"]
                data.scored[str(name)] = {
                    "metric": str(one["metric"]),
                    "score": float(one["score"]),
                    "interval": (float(low), float(high)),
                    "examples": int(one["examples"]),
                }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: not scores of seekr evaluate ({_brief(error)}); evaluate again") from error
        data.facts = [("model", str(content["model"]))] if content.get("model") else []
        data.settings = flat(content.get("evaluation") or {})
    data.verdict = _verdict(folder, data)
    if (folder / GENERAL).is_file():
        data.general = _general(folder, data)
    count = len(data.scored)
    data.title = f"{count} task{'s' * (count != 1)} evaluated" if data.scored else "general ability"
    return data


def _general(folder: Path, data: RunData) -> dict[str, Any]:
    content = read_object(folder / GENERAL)
    try:
        tasks = {
            str(name): {
                key: None if one.get(key) is None else float(one[key])
                for key in ("score", "base", "drift", "stderr", "examples", "shots")
            }
            for name, one in content["tasks"].items()
        }
        means = {
            key: None if content.get(key) is None else float(content[key]) for key in ("mean", "base_mean", "drift")
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        data.notes.append(f"{GENERAL}: damaged ({_brief(error)})")
        return {}
    return {"tasks": tasks} | means


def settings_of(ledger: dict[str, Any]) -> list[tuple[str, str]]:
    """A run's settings by the names that a command line has for them."""
    method = ledger.get("method") or {}
    found = [("method", str(method.get("name"))), ("preset", str(method.get("preset")))]
    found += [("seed", str(ledger["seed"]))] if "seed" in ledger else []
    found += flat(method.get("settings") or {}, "method.")
    for group in ("replay", "memory"):
        found += flat(method.get(group) or {}, f"{group}.")
    return found + flat(ledger.get("training") or {})


def flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of nested settings; long values are cut."""
    if not isinstance(content, dict):
        return []
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found += flat(value, f"{prefix}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found.append((f"{prefix}{key}", one_line(shown, 400)))
    return found


def command_of(events: list[dict[str, Any]]) -> tuple[str, str] | None:
    """The command that began a run and the folder in which it was given, as they were recorded."""
    for one in events:
        if one["event"] == "begin" and isinstance(one.get("command"), list):
            words = (str(word) for word in one["command"] if word != "--resume")
            return shlex.join(words), str(one.get("folder") or "")
    return None


def _command(ledger: dict[str, Any]) -> str:
    """The command as far as a run of a former version says it."""
    method = ledger.get("method") or {}
    words = ["seekr", "run", "STREAM.yaml", "--output", "NEW", "--method", str(method.get("name"))]
    return shlex.join([*words, f"seed={ledger.get('seed', 0)}"])


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _brief(error: BaseException) -> str:
    return str(error) if isinstance(error, DataError | ValueError) else repr(error)

"""How training went: loss terms, gradient shares, replay and phases, from a run's record or the Trainer's own logs."""

from pathlib import Path
from typing import Any

from seekr_cl.report.html.data import TaskLog
from seekr_cl.system import reading
from seekr_cl.system.run_record import RECORD, count, is_finite, read_events, record_of

LOG = "training_log.json"
"""As ``training.learning.LOG``, which lies beside this package and not below it."""
_LARGEST_LOG = 1 << 28


def read_trainer_log(path: Path, task: str, notes: list[str]) -> TaskLog | None:
    """The log lines that lie beside a model."""
    try:
        lines = reading.read_json(path, _LARGEST_LOG, bounded=False)
        if not isinstance(lines, list) or not all(isinstance(one, dict) for one in lines):
            raise ValueError("not a list of log lines")
    except (OSError, ValueError) as error:
        notes.append(f"training of task '{task}': {path.name} is not readable ({_reason(error)})")
        return None
    kept = [line for one in lines if "step" in (line := clean_line(one))]
    told = [
        f"step {one.get('step')}: {one.get('retention_told')}; {one['retention_action']}"
        for one in lines
        if "retention_action" in one
    ]
    return TaskLog(task, kept, int(kept[-1]["step"]) if kept else 0, actions=told)


def clean_line(line: dict[str, Any]) -> dict[str, Any]:
    """The finite numbers of a log line."""
    found = {str(key): value for key, value in line.items() if is_finite(value)}
    return found | ({"step": count(found["step"])} if "step" in found else {})


def read_recorded(folder: Path, notes: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """The events of a run's record, and whether there is one."""
    path = record_of(folder)
    if path is None:
        return [], False
    try:
        events, damaged = read_events(path)
    except OSError as error:
        notes.append(f"{RECORD}: not readable ({_reason(error)})")
        return [], True
    if damaged:
        notes.append(f"{RECORD}: {damaged} lines are no events and were left out")
    return events, True


def recorded_logs(events: list[dict[str, Any]]) -> list[TaskLog]:
    """The log lines of each task, in order; what was repeated after a crash counts once."""
    logs: dict[tuple[int, str], TaskLog] = {}
    current: TaskLog | None = None
    for event in events:
        if event["event"] == "training":
            key = count(event.get("number")), str(event.get("task"))
            current = logs.setdefault(key, TaskLog(key[1], []))
            current.steps = count(event.get("steps"))
            # Going on after a crash repeats the steps since the last checkpoint.
            done = count(event.get("done"))
            current.lines = [line for line in current.lines if line["step"] <= done]
            # Each training tells all of its actions at its end, those before a stop too.
            current.actions.clear()
            replayed = event.get("replayed")
            current.replayed = [count(one) for one in replayed] if isinstance(replayed, list) else []
            current.bin_steps = max(1, count(event.get("bin_steps")))
        elif event["event"] == "log" and current is not None:
            values = event.get("values")
            line = clean_line(values) if isinstance(values, dict) else {}
            current.lines += [line] if "step" in line else []
        elif event["event"] == "retention" and current is not None:
            current.actions.append(str(event.get("told")))
    return [log for _, log in sorted(logs.items(), key=lambda item: item[0][0]) if log.lines or log.steps]


def recorded_phases(events: list[dict[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """Seconds of each phase, by what it was about; an interrupted phase counts up to its last event."""
    found: dict[str, dict[str, float]] = {}
    about, phase, begun, last = "", "", 0.0, 0.0
    for event in [*events, {"event": "end", "time": events[-1]["time"] if events else 0.0}]:
        now = event["time"]
        if event["event"] in ("phase", "begin", "end"):
            if phase:
                until = now if event["event"] == "phase" else last if event["event"] == "begin" else now
                times = found.setdefault(about, {})
                times[phase] = times.get(phase, 0.0) + max(0.0, until - begun)
            phase = str(event.get("phase") or "") if event["event"] == "phase" else ""
            about, begun = str(event.get("task") or "base"), now
        last = now
    return list(found.items())


def loss_terms(logs: list[TaskLog]) -> list[str]:
    """The names of the loss terms, those of single terms only."""
    names = (key for log in logs for line in log.lines for key in line if key.startswith("loss_"))
    return [name for name in dict.fromkeys(names) if not name.endswith("_total")]


def shares(logs: list[TaskLog]) -> list[str]:
    """The names of the gradient shares."""
    return list(dict.fromkeys(key for log in logs for line in log.lines for key in line if key.startswith("share_")))


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)

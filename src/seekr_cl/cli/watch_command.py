"""``seekr watch``: where a run is, from another terminal or afterwards. Needs no model, and so no torch."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from seekr_cl.cli.output import out
from seekr_cl.errors import DataError
from seekr_cl.os_errors import reason_of
from seekr_cl.system.reading import json_lines, open_plain
from seekr_cl.system.run_record import RECORD, is_event, moved, parse_event, record_of
from seekr_cl.system.run_state import SILENT, RunState, fields, line, seen_at, time_text
from seekr_cl.system.visible import one_line, visible

_EVERY = 1.0
_LINES_EVERY = 10.0
_NAMED = 40


class Follower:
    """A record that is read on as it grows.

    Args:
        path: the record.

    Attributes:
        state: what its events so far add up to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = RunState()
        self._at = 0
        self._rest = b""

    def read(self) -> bool:
        """Reads what is new; says whether anything was.

        Raises:
            DataError: if the record cannot be read.
        """
        try:
            content = self._more()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({reason_of(error)})") from error
        self._at += len(content)
        content = self._rest + content
        lines = json_lines(content)
        self._rest = content[sum(len(one) + 1 for one in lines) :]
        events = [event for one in lines if is_event(event := parse_event(one))]
        for event in events:
            self.state.apply(event)
        return bool(events)

    def _more(self) -> bytes:
        """What was written since the last time; a learning that is done takes its record into the model's folder."""
        try:
            return self._from(self.path)
        except FileNotFoundError:
            place = moved(self.path)
            if place is None:
                raise
            self.path = place
            return self._from(place)

    def _from(self, path: Path) -> bytes:
        with open_plain(path) as file:
            file.seek(self._at)
            return file.read()


def find_record(folder: Path) -> Path:
    """The record of a run, of a learning that is done, or of one that goes on.

    Raises:
        DataError: naming the folder, if there is none.
    """
    found = folder if folder.is_file() else record_of(folder)
    if found is None:
        made = (folder / "run.json").is_file() or (folder / "training_log.json").is_file()
        why = "made by a former version, which wrote none" if made else "name the --output of seekr run or learn"
        raise DataError(f"{folder}: holds no {RECORD}; {why}")
    return found


def watch_command(given: Any) -> None:
    """Shows the run until it is over; once, or line by line, where nobody can watch."""
    follower = Follower(find_record(Path(given.run)))
    follower.read()
    if not follower.state.kind:
        raise DataError(f"{follower.path}: holds no events of a run; it may have only just begun, try again")
    if given.json:
        print(json.dumps(_numbers(follower.state, time.time()), indent=2, ensure_ascii=False))
    elif given.once:
        out().print(_page(given.run, follower.state, time.time(), 100))
    elif not sys.stdout.isatty():
        _follow_lines(follower)
    else:
        _follow(given.run, follower)


def _follow(name: str, follower: Follower) -> None:
    console = out()

    def shown() -> Any:
        return _page(name, follower.state, time.time(), console.width)

    with Live(get_renderable=shown, console=console, refresh_per_second=2, vertical_overflow="visible"):
        while not follower.state.ended:
            time.sleep(_EVERY)
            follower.read()


def _follow_lines(follower: Follower) -> None:
    """A line now and then: a file or a pipe keeps them all."""
    last, written = (0, "", ""), 0.0
    while True:
        now = time.time()
        phase = (follower.state.number, follower.state.phase, follower.state.ended)
        if phase != last or now - written >= _LINES_EVERY:
            last, written = phase, now
            print(visible(line(follower.state, seen_at(follower.state, now))), flush=True)
        if follower.state.ended:
            return
        time.sleep(_EVERY)
        follower.read()


def _page(name: str, state: RunState, now: float, width: int) -> Group:
    moment = seen_at(state, now)
    said = fields(state, moment)
    passed = time_text(max(0.0, _until(state, moment)))
    parts: list[Any] = [
        Text.assemble((f"{state.method or state.kind} ", "bold"), one_line(name), "  ", (passed, "dim"))
    ]
    whole = state.whole(moment)
    if whole is not None:
        room = max(10, min(width - 8, 72))
        full = round(whole * room)
        parts.append(Text.assemble(("━" * full, "green"), ("━" * (room - full), "dim"), f" {100 * whole:3.0f}%"))
    now_line = [said[key] for key in ("phase", "why", "task", "name", "step", "left", "speed") if key in said]
    parts.append(Text(visible(", ".join(now_line)), style="bold" if not state.ended else ""))
    for key, label in (("terms", "loss"), ("share", "")):
        if key in said:
            parts.append(Text(visible(f"{label} {said[key]}".strip())))
    silent = now - state.updated
    if not state.ended and silent > SILENT:
        parts.append(
            Text(f"no event for {time_text(silent)}: it may have been killed; continue with --resume", "yellow")
        )
    if state.rows:
        parts.append(_scores(state))
    return Group(*parts)


def _scores(state: RunState) -> Table:
    """Each task: right after it was learned, and now."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("task", overflow="fold")
    for name in ("base", "learned", "now", "change"):
        table.add_column(name, justify="right")
    last = state.rows[max(state.rows)]
    joint = len(state.tasks) == 1 and len(last) > 1
    for task in list(last)[:_NAMED]:
        number = state.tasks.index(task) + 1 if task in state.tasks and not joint else 0
        base = state.rows.get(0, {}).get(task)
        learned = state.rows.get(number, {}).get(task) if number and number <= max(state.rows) else None
        before = learned if learned is not None else base
        change = last[task] - before if before is not None and (learned is not None or not number) else None
        table.add_row(
            Text(one_line(task)), *(_number(one) for one in (base, learned, last[task])), _number(change, "+.1f")
        )
    return table


def _until(state: RunState, now: float) -> float:
    return (state.updated if state.ended else now) - state.started


def _numbers(state: RunState, now: float) -> dict[str, Any]:
    now = seen_at(state, now)
    left = state.seconds_left(now)
    return {
        "kind": state.kind,
        "method": state.method,
        "state": state.ended or "running",
        "message": state.message,
        "phase": state.phase,
        "task": state.task,
        "number": state.number,
        "of": len(state.tasks),
        "done": state.done,
        "total": state.total,
        "terms": state.terms,
        "shares": state.shares,
        "tokens_per_second": state.tokens_per_second,
        "seconds": round(_until(state, now), 1),
        "seconds_left": None if left is None else round(left, 1),
        "last_event": state.updated,
        "scores": {str(number): scores for number, scores in sorted(state.rows.items())},
    }


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)

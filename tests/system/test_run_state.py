"""Where a run is and how much time is left, from its events."""

import json

import pytest
from report_runs import record_events

from seekr_cl.report.html.gather import gather
from seekr_cl.report.html.page import render
from seekr_cl.system.run_record import append_event, read_events
from seekr_cl.system.run_state import RunState, line, time_text

TASKS = ["a", "b", "c", "d"]
EVENTS = record_events(TASKS)
END = EVENTS[-1]["time"]


def at(number: int) -> RunState:
    return RunState.of(EVENTS[:number])


def test_time_left_is_right_at_every_event() -> None:
    """The run is regular, so from the first task's second step on it is known exactly but for scoring and writing."""
    known = 0
    for number in range(1, len(EVENTS)):
        now = EVENTS[number - 1]["time"]
        left = at(number).seconds_left(now)
        stage = at(number).number
        if left is None:
            assert stage <= 1
            continue
        known += 1
        # Nobody knows what scoring and writing take before they have been done once: three seconds for each task.
        slack = 3.0 * len(TASKS) + 0.01 if stage <= 1 else 1.01
        assert left == pytest.approx(END - now, abs=slack), (number, EVENTS[number - 1])
    assert known > len(EVENTS) // 2


def test_time_passes_between_events() -> None:
    place = next(n for n, one in enumerate(EVENTS) if one["event"] == "phase" and one["number"] == 3)
    state = at(place + 4)
    now = EVENTS[place + 3]["time"]
    assert state.seconds_left(now + 2) > state.seconds_left(now), "a step that takes longer makes all of them longer"


def test_killed_and_resumed() -> None:
    """The hours between are no work, and what is behind the run is not ahead of it."""
    place = next(n for n, one in enumerate(EVENTS) if one["event"] == "log" and one["values"]["step"] == 5) + 2
    place += next(n for n, one in enumerate(EVENTS[place:]) if one.get("number") == 2)
    later = 100_000.0
    state = at(place + 5)
    before = state.seconds_left(EVENTS[place + 4]["time"])
    state.apply({**EVENTS[0], "time": later})
    state.apply({"event": "phase", "time": later, "phase": "train", "task": "b", "number": 2})
    state.apply({"event": "training", "time": later, "task": "b", "number": 2, "steps": 10, "done": state.done})
    assert state.seconds_left(later) == pytest.approx(before, abs=4)
    assert sum(state.spent.values()) < 60


def test_the_line() -> None:
    place = max(n for n, one in enumerate(EVENTS) if one["event"] == "progress" and one.get("done") == 4)
    state = at(place + 1)
    text = line(state, EVENTS[place]["time"])
    said = "train, task 4 of 4, d, step 4/10, 12 s left, task 0.25 attention 0.025, share task 60% attention 40%"
    assert text == f"{said}, 100 tokens/s"
    assert line(RunState.of(EVENTS), END) == "done"
    stopped = RunState.of([*EVENTS[:20], {"event": "end", "time": 1.0, "how": "failed", "message": "no space"}])
    assert line(stopped, 2.0) == "failed, no space"
    assert line(RunState(), 0.0).startswith("starting")


def test_nonsense_changes_nothing() -> None:
    state = RunState.of(EVENTS[:30])
    before = line(state, EVENTS[29]["time"])
    for event in (
        {"event": "log", "values": 3}, {"event": "log", "values": {"step": None}}, {"event": "unheard of"},
        {"event": "scores", "scores": []}, {"event": "log", "values": {"loss_x": "1"}},
    ):  # fmt: skip
        state.apply({"time": EVENTS[29]["time"], **event})
    assert line(state, EVENTS[29]["time"]) == before
    for kind in ("begin", "phase", "training", "progress", "end"):
        RunState.of([{"event": kind, "time": 1, "number": "x", "total": [], "tasks": 4, "work": {}, "tests": None}])


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "1" + "0" * 400, "-1e308", "1e308", "[]", "{}", "true"])
def test_numbers_without_an_end_are_none(tmp_path, value: str) -> None:
    """JSON's integers have no end, and Python's reader takes Infinity: neither may end a page or a line."""
    written = []
    for event in EVENTS[:30]:
        for key in event.keys() - {"event"}:
            written.append(json.dumps(event | {key: "VALUE"}).replace('"VALUE"', value))
            if key == "values":
                numbers = dict.fromkeys(event[key], "VALUE")
                written.append(json.dumps(event | {key: numbers}).replace('"VALUE"', value))
        written.append(json.dumps(event))
    (tmp_path / "m1.record.jsonl").write_text("\n".join(written) + "\n")
    events, _ = read_events(tmp_path / "m1.record.jsonl")
    state = RunState()
    for event in events:
        state.apply(event)
        assert line(state, END)
        state.whole(END)
        time_text(state.updated - state.started)
    render(gather([tmp_path / "m1"]))


def test_a_record_is_read_while_it_is_written(tmp_path) -> None:
    path = tmp_path / "record.jsonl"
    for event in EVENTS[:5]:
        append_event(path, event)
    with open(path, "ab") as file:
        file.write(b'{"event": "log", "ti')
    assert read_events(path) == (EVENTS[:5], 0)
    with open(path, "ab") as file:
        file.write(b'me": NaN}\n\xff\xfe\n')
    assert read_events(path) == (EVENTS[:5], 2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (54.4, "54 s"), (59, "1 min"), (3599, "1 h 00 min"), (1e6, "11 d 13 h")]
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text

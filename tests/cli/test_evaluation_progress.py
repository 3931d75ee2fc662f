"""What ``seekr evaluate`` shows while it works: a line on a terminal, a few lines in a pipe, nothing with --quiet."""

import json
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from generating import random_model

from seekr_cl.cli.main import main
from seekr_cl.evaluation.evaluate import write_predictions
from seekr_cl.system.run_state import RunState, fields


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("progress")
    model, tokenizer = random_model("llama")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, count in (("bills", 12), ("a\x1b[2Jb", 8)):
        rows = [{"prompt": "ab" * (1 + row % 5), "completion": "c"} for row in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [str(folder / f"{name}.jsonl") for name in ("bills", "a\x1b[2Jb")]
    return [
        "evaluate",
        "--model",
        str(folder / "model"),
        "--task",
        *tasks,
        "--max-new-tokens",
        "8",
        "--batch-size",
        "2",
    ]


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Standard error is a pseudo-terminal of 100 columns, read until it is closed."""
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with suppress(OSError):
            while more := os.read(master, 65536):
                seen.append(more)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield seen
    reader.join()
    os.close(master)


def test_in_a_pipe_it_is_a_few_plain_lines(words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate, ")]
    assert 3 <= len(lines) <= 6
    assert re.fullmatch(
        r"evaluate, task 1 of 2, bills, prompt \d+/12, (\d+ s left|time left not known yet), [\d,]+ tokens/s", lines[0]
    )
    assert re.search(r"task 2 of 2, a.*b, prompt 8/8, [\d,]+ tokens/s", lines[-1])
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("more", [["--quiet"], ["--quiet", "--json"]])
def test_quiet_is_quiet(words, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    assert main([*words, "--output", str(tmp_path / "out"), *more]) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if not line.startswith("warning: ")] == []
    assert printed.out == "" if len(more) == 1 else json.loads(printed.out)["tasks"]


def test_on_a_terminal_it_is_one_line(words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen:
        assert main([*words, "--output", str(tmp_path / "out")]) == 0
    shown = b"".join(seen).decode()
    for said in ("load", "task 1 of 2, bills, prompt 0/12", "task 2 of 2, a⟨U+001B⟩[2Jb, prompt 0/8"):
        assert said in shown
    assert "warning: task 'a⟨U+001B⟩[2Jb': " in shown
    assert "\x1b[2Jb" not in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is shown again"
    with terminal(monkeypatch) as seen:
        assert main([*words, "--output", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert b"prompt" not in b"".join(seen)


def test_what_was_answered_before_takes_no_time(
    words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:

        def stop(folder: Path, score) -> Path:
            if score.task != "bills":
                raise KeyboardInterrupt
            return write_predictions(folder, score)

        patch.setattr("seekr_cl.evaluation.task_scoring.write_predictions", stop)
        assert main([*words, "--output", str(tmp_path / "out")]) == 130
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "out"), "--resume"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate, ")]
    assert "task 1 of 2, bills, prompt 12/12, time left not known yet" in lines[0]
    assert "task 2 of 2" in lines[-1]


def test_the_time_left_is_that_of_all_prompts() -> None:
    def at(*events: tuple[float, dict]) -> RunState:
        return RunState.of({"time": 100 + when} | event for when, event in events)

    begin = (0.0, {"event": "begin", "kind": "evaluation", "tasks": ["a", "b"], "work": [10, 30], "tests": 0})
    first = (4.0, {"event": "phase", "phase": "evaluate", "task": "a", "number": 1, "total": 10, "done": 0})
    state = at(begin, first, (6.0, {"event": "progress", "done": 5, "total": 10}))
    assert state.seconds_left(106) == pytest.approx(2 / 5 * 35)
    # Five that a former call had answered, then two seconds for the other five.
    resumed = (4.0, first[1] | {"done": 5})
    done = (6.0, {"event": "progress", "done": 10, "total": 10})
    second = (6.0, {"event": "phase", "phase": "evaluate", "task": "b", "number": 2, "total": 30, "done": 0})
    state = at(begin, resumed, done, second, (8.0, {"event": "progress", "done": 5, "total": 30}))
    assert state.seconds_left(108) == pytest.approx(4 / 10 * 25)
    assert fields(state, 108)["task"] == "task 2 of 2"
    assert "task" not in fields(at(begin, (1.0, {"event": "phase", "phase": "load", "number": 0})), 101)

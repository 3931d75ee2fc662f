"""``seekr watch``: a run seen from another terminal, afterwards, and through a pipe."""

import argparse
import json
import os
import pty
import select
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import zygote
from report_runs import ACTIVE, record_events

from seekr_cl.cli import live as live_page
from seekr_cl.cli.main import main
from seekr_cl.cli.watch_command import Follower, find_record
from seekr_cl.errors import DataError, ModelError
from seekr_cl.system.run_record import RECORD, append_event, beside

EVENTS = record_events(["plain", "b\x1b[2J\u202e"])


def record(folder: Path, count: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for event in EVENTS[:count]:
        # Escapes and marks of direction in a name come out of JSON as they went in.
        append_event(folder / RECORD, event)
    return folder


def in_training() -> int:
    return max(n for n, one in enumerate(EVENTS) if one["event"] == "progress" and one.get("done") == 4) + 1


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(tmp_path / "run", in_training())
    assert main(["watch", str(folder), "--once"]) == 0
    text = capsys.readouterr().out
    assert "train, task 2 of 2" in text
    assert "step 4/10" in text
    assert "100 tokens/s" in text
    assert "loss task 0.25 attention 0.025" in text
    assert "share task 60% attention 40%" in text
    assert "12 s left" in text
    assert "no event for" in text, "these events are old"
    assert not set(text) & set(ACTIVE)


def test_for_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(tmp_path / "run", in_training())
    assert main(["watch", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["phase"], said["number"], said["of"], said["done"]) == ("running", "train", 2, 2, 4)
    assert said["terms"] == {"task": 0.25, "attention": 0.025}
    record_all = record(tmp_path / "whole")
    assert main(["watch", str(record_all), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["seconds_left"], sorted(said["scores"])) == ("done", 0.0, ["0", "1", "2"])


def test_a_pipe_gets_lines_until_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(tmp_path / "run", 20)

    def go_on() -> None:
        time.sleep(0.3)
        with open(folder / RECORD, "ab") as file:
            whole = json.dumps(EVENTS[20]).encode()
            file.write(whole[:10])
            file.flush()
            time.sleep(1.2)
            file.write(whole[10:] + b"\n")
        for event in EVENTS[21:]:
            append_event(folder / RECORD, event)

    writer = threading.Thread(target=go_on)
    writer.start()
    assert main(["watch", str(folder)]) == 0
    writer.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "done"
    assert len(lines) == 2
    assert lines[0].startswith("train, task 1 of 2, plain, step")


@pytest.mark.parametrize("named", ["m1", f"m1.{RECORD}"])
def test_a_record_is_followed_to_where_it_moves(tmp_path: Path, named: str) -> None:
    """A learning takes its record into the model's folder right after its end."""
    begun = beside(tmp_path / "m1")
    for event in EVENTS[:5]:
        append_event(begun, event)
    follower = Follower(find_record(tmp_path / named))
    assert follower.read()
    append_event(begun, EVENTS[-1])
    (tmp_path / "m1").mkdir()
    begun.rename(tmp_path / "m1" / RECORD)
    assert follower.read()
    assert (follower.state.ended, len(follower.state.tasks)) == ("done", 2)
    (tmp_path / "m1" / RECORD).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        follower.read()


@pytest.mark.parametrize("failed", [True, False])
def test_a_live_page_changes_nothing_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:
    """Its process does not end when told to, and its last page fails in a way that nobody thought of."""
    ready = tmp_path / "ready"
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ntrap '' TERM\n: > '{ready}'\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(live_page, "_PATIENCE", 0.1)

    def broken(*words: object, **more: object) -> str:
        raise RuntimeError("the page is broken")

    monkeypatch.setattr("jinja2.Template.render", broken)
    folder = record(tmp_path / "run")
    (folder / "scores.json").write_text('{"tasks": {}}')
    given = argparse.Namespace(output=str(folder), live=str(tmp_path / "page.html"))
    begun = time.monotonic()
    with pytest.raises(ModelError) if failed else nullcontext(), live_page.live(given, main=True):
        while not ready.exists():
            time.sleep(0.01)
        if failed:
            raise ModelError("what the run says")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "holds no record.jsonl"), ("", "holds no events"), ("\x00\n{}\n", "holds no events"), ("/", "holds no")],
)
def test_nothing_to_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str) -> None:
    if content == "/":
        (tmp_path / RECORD).mkdir()
    elif content is not None:
        (tmp_path / RECORD).write_text(content)
    assert main(["watch", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_terminal_is_drawn_on_and_left_whole(tmp_path: Path) -> None:
    """As over ssh: a pseudo-terminal, 80 columns; Ctrl-C ends it and shows the cursor again."""
    folder = record(tmp_path / "run", in_training())
    master, slave = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    with os.fdopen(slave, "rb") as terminal:
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
        process = zygote.start("zygote:command", ["watch", str(folder)], environment=environment, **ends)
    seen = b""
    until = time.monotonic() + 60
    while b"share" not in seen and time.monotonic() < until:
        if select.select([master], [], [], 0.2)[0]:
            seen += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    # Read on meanwhile: a terminal that nobody reads fills up, and whoever writes to it waits.
    while select.select([master], [], [], 0.2)[0] or not process.has_ended():
        try:
            more = os.read(master, 65536)
        except OSError:
            break
        seen += more
        if not more:
            break
    os.close(master)
    assert process.wait() == 130
    assert b"task 2 of 2" in seen
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l"), "the cursor is shown again"
    assert b"\x1b[2J\xe2" not in seen

"""SIGTERM and Ctrl-C on real processes: the step is finished, the state saved, the exit code the documented one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_world import World

LONG = ["num_train_epochs=400", "logging_steps=1", "progress=lines"]


def begun(words: list[object], folder: Path, line: str = "step ") -> subprocess.Popen:
    """A command, once it has trained a few steps."""
    command = [sys.executable, "-m", "seekr_cl", *map(str, words)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for text in process.stderr:
        if line in text:
            return process
    raise AssertionError("it ended before it trained")


def steps(done_out: str) -> int:
    return int(re.search(r"in (\d+) steps", done_out)[1])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_and_resumed(world: World, seekr, tmp_path: Path, signum: int, code: int) -> None:
    words = world.learn(tmp_path, *LONG)
    process = begun(words, tmp_path)
    process.send_signal(signum)
    _, err = process.communicate(timeout=900)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == "stopped, and the state is saved; continue with the same command and --resume"
    assert not (tmp_path / "model").exists()
    assert list((tmp_path / "model.checkpoints").iterdir())
    done = seekr(*words, "--resume")
    assert done.code == 0, done.err
    assert steps(done.out) == 800
    assert not (tmp_path / "model.checkpoints").exists()


def test_a_second_interrupt_does_not_wait(world: World, tmp_path: Path) -> None:
    stream = world.stream_with(tmp_path, num_train_epochs=400, logging_steps=1, progress="lines")
    process = begun(["run", stream, "--output", tmp_path / "run"], tmp_path)
    # The first is only a request; held still, the process cannot have granted it before the second arrives.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (tmp_path / "run" / "run.json").exists()


def test_help_says_so(seekr) -> None:
    for command in ("learn", "run"):
        text = " ".join(seekr(command, "--help").out.split())
        assert "exit code 143 or 130; continue with --resume" in text

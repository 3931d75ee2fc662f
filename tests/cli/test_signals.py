"""SIGTERM and Ctrl-C on real processes: the step is finished, the state saved, the exit code the documented one."""

import re
import signal
import time
from pathlib import Path

import pytest
import zygote
from cli_world import World

LONG = ["num_train_epochs=100", "logging_steps=1", "progress=lines"]


def begun(words: list[object], folder: Path) -> zygote.Process:
    """A command, once it has trained a few steps."""
    process = zygote.start("zygote:command", [str(word) for word in words], folder=folder, stderr=zygote.PIPE)
    assert process.stderr is not None
    for text in process.stderr:
        if "step " in text:
            return process
    raise AssertionError("it ended before it trained")


def steps(done_out: str) -> int:
    return int(re.search(r"in (\d+) steps", done_out)[1])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_and_resumed(world: World, seekr, tmp_path: Path, signum: int, code: int) -> None:
    words = world.learn(tmp_path, *LONG)
    process = begun(words, tmp_path)
    process.send_signal(signum)
    err = process.stderr.read()
    assert process.wait() == code, err
    assert err.splitlines()[-1] == "stopped, and the state is saved; continue with the same command and --resume"
    assert not (tmp_path / "model").exists()
    assert list((tmp_path / "model.checkpoints").iterdir())
    done = seekr(*words, "--resume")
    assert done.code == 0, done.err
    assert steps(done.out) == 200
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
    err = process.stderr.read()
    assert process.wait() == 130
    assert "Traceback" not in err
    assert (tmp_path / "run" / "run.json").exists()


def test_help_says_so(seekr) -> None:
    for command in ("learn", "run"):
        text = " ".join(seekr(command, "--help").out.split())
        assert "exit code 143 or 130; continue with --resume" in text

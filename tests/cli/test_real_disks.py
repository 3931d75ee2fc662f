"""Commands on a small file system that really fills up, and on one that really is read-only."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_world import Seekr, World, fingerprint

from seekr_cl.memory import ReplayMemory


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty tmpfs of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, left: int) -> Path:
    """Takes all but ``left`` bytes."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - left))
    return filler


@pytest.mark.parametrize("left", [0, 8, 24, 48, 80, 120, 160])
def test_learning_on_a_full_disk(seekr: Seekr, world: World, disk: Path, left: int) -> None:
    """The second task, with too little space at different places of the way."""
    memory, output = disk / "memory", disk / "model"
    done = seekr("memory", "export", world.memory, disk / "memory.tar")
    assert done.code == 0, done.err
    assert seekr("memory", "import", memory, disk / "memory.tar").code == 0
    (disk / "memory.tar").unlink()
    before = fingerprint(memory)
    filler = fill(disk, left * 1024)
    command = world.learn(disk, model=world.learnt, task=world.second, memory=memory, output=output)

    done = seekr(*command)
    assert done.code == 2, (done.code, done.err)
    assert "Traceback" not in done.err
    assert "No space left" in done.err
    assert ReplayMemory.open(memory, verify=True).generation == 1
    assert fingerprint(memory) == before
    assert not output.exists() or not any(output.iterdir())

    filler.unlink()
    done = seekr(*command, "--resume")
    assert done.code == 0, done.err
    assert ReplayMemory.open(memory, verify=True).generation == 2
    assert not list(disk.rglob("*.partial"))


def test_a_read_only_disk(seekr: Seekr, world: World, disk: Path) -> None:
    memory = disk / "memory"
    assert seekr("memory", "export", world.memory, disk / "memory.tar").code == 0
    assert seekr("memory", "import", memory, disk / "memory.tar").code == 0
    before = fingerprint(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    commands: list[list[object]] = [
        world.learn(disk, model=world.learnt, task=world.second, memory=memory, output=disk.parent / "model"),
        ["memory", "forget", memory, "--task", "first"],
        ["memory", "gc", memory],
        ["memory", "import", disk / "other", disk / "memory.tar"],
    ]
    for command in commands:
        done = seekr(*command)
        assert done.code == 2, (command, done.code, done.out, done.err)
        assert "Traceback" not in done.err
    assert seekr("memory", "verify", memory).code == 0
    assert fingerprint(disk) == before
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    done = seekr(*commands[0])
    assert done.code == 0, done.err


def test_a_plot_on_a_full_disk(seekr: Seekr, world: World, disk: Path) -> None:
    """Room for the scores, none for the plot: a warning, and the scores that were there are there."""
    run = disk / "run"
    shutil.copytree(world.run, run)
    before = (run / "scores.json").read_bytes()
    (run / "scores.png").unlink()
    filler = fill(disk, 8192)
    done = seekr("run", world.stream, "--output", run, "--resume")
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if line.startswith("warning: ")][-1:] != []
    assert "scores.png: cannot be written (No space left on device)" in done.err
    assert (run / "scores.json").read_bytes() == before
    compared = seekr("compare", run, "--output", disk / "compared")
    assert compared.code == 2, compared.err
    assert "Traceback" not in compared.err

    filler.unlink()
    assert seekr("run", world.stream, "--output", run, "--resume").code == 0
    assert (run / "scores.png").is_file()
    assert len(json.loads((run / "scores.json").read_text())["matrix"]) == 3

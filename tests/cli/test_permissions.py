"""What a user may not read or write, at whatever place, is one line with its path, and nothing is touched."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_world import FAST, Done, World, fingerprint
from zygote import run

Powerless = Callable[..., Done]


@pytest.fixture
def powerless(tmp_path: Path) -> Powerless:
    """Runs a command as a process that permissions count for, root's as well."""
    return lambda *arguments, **environment: run(
        "zygote:command_without_rights", [str(word) for word in arguments], folder=tmp_path, environment=environment
    )


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """Copies of what may be shut."""
    for name in ("memory", "learnt", "base", "first", "second", "run"):
        shutil.copytree(getattr(world, name), tmp_path / "own" / name)
    shutil.copy(world.stream, tmp_path / "own" / "stream.yaml")
    return tmp_path / "own"


def told(done: Done, path: Path) -> None:
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2, (done.code, done.err)
    assert len(lines) == 1
    assert "Traceback" not in done.err
    assert str(path) in lines[0]


def shut(path: Path, mode: int = 0) -> Callable[[], None]:
    before = path.stat().st_mode
    path.chmod(mode)
    return lambda: path.chmod(before) if path.parent.stat() and path.exists() else None


MEMORY = (["show"], ["show", "--samples"], ["log"], ["verify"], ["gc"], ["rollback", "--to", "first"],
          ["forget", "--task", "first"], ["export", "OUT"])  # fmt: skip


@pytest.mark.parametrize("command", MEMORY, ids=" ".join)
@pytest.mark.parametrize("place", ["", "manifest.json", "generations", "generations/0001.json", "0001-first.jsonl"])
def test_of_a_memory(powerless: Powerless, folder: Path, place: str, command: list[str]) -> None:
    memory = folder / "memory"
    before = fingerprint(memory)
    name, *rest = [str(folder / "out.tar") if word == "OUT" else word for word in command]
    opened = shut(memory / place)
    done = powerless("memory", name, memory, *rest)
    opened()
    # A file of texts is no part of what these read.
    if place == "0001-first.jsonl" and name in ("log", "gc", "forget"):
        assert done.code == 0, done.err
        return
    told(done, memory)
    assert fingerprint(memory) == before


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        ("second", 0),
        ("second/train.json", 0),
        ("learnt", 0),
        ("learnt/config.json", 0),
        ("learnt/model.safetensors", 0),
        ("memory", 0o555),
        ("memory/generations", 0o555),
        ("shut", 0o555),
        ("shut", 0),
        ("model.checkpoints", 0),
    ],
)
def test_of_learning(powerless: Powerless, folder: Path, place: str, mode: int) -> None:
    for name in ("shut", "model.checkpoints"):
        (folder / name).mkdir()
    before = fingerprint(folder)
    output = folder / "shut" / "model" if place == "shut" else folder / "model"
    given = ["--model", folder / "learnt", "--task", folder / "second", "--memory", folder / "memory"]
    opened = shut(folder / place, mode)
    done = powerless("learn", *given, "--output", output, *FAST, "checkpoint_every=2")
    opened()
    told(done, folder)
    assert before | fingerprint(folder) == before


@pytest.mark.parametrize(
    "place", ["run", "run/run.json", "run/evaluations", "run/evaluations/01-first/scores.json", "run/memory",
              "run/models/02-second", "stream.yaml"]
)  # fmt: skip
def test_of_a_run(powerless: Powerless, folder: Path, place: str) -> None:
    opened = shut(folder / place)
    if place == "run/models/02-second":
        shutil.rmtree(folder / "run/evaluations/02-second")
    done = powerless("run", folder / "stream.yaml", "--output", folder / "run", "--resume")
    opened()
    told(done, folder)


@pytest.mark.parametrize("what", ["a file", "shut", "another user's"])
def test_of_the_trainers_folder(powerless: Powerless, folder: Path, tmp_path: Path, what: str) -> None:
    """Where temporary files go, a file or nobody's folder has the name."""
    place = tmp_path / "temporary"
    place.mkdir()
    given = ["--model", folder / "base", "--task", folder / "first", "--memory", folder / "new"]
    if what == "a file":
        (place / f"seekr-trainer-{os.getuid()}").write_text("not a folder")
    elif what == "another user's":
        (place / "seekr-trainer").mkdir(mode=0)
    opened = shut(place, 0o555 if what == "shut" else 0o755)
    done = powerless("learn", *given, "--output", folder / "model", *FAST, TMPDIR=str(place))
    opened()
    if what == "a file":
        told(done, place)
        assert not (folder / "model").exists()
    else:
        # Python takes the next place for temporary files.
        assert done.code == 0, done.err

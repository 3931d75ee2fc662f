"""Commands run as real processes, and one world of a model, two tasks, a memory and a run for all tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_world import FAST, Done, Seekr, World, fingerprint, free_port, save_model, write_stream, write_task
from zygote import run_seekr, run_together


@pytest.fixture
def seekr(tmp_path: Path) -> Seekr:
    """Run a command as a process of its own, in the test's folder."""
    return lambda *words: run_seekr(words, tmp_path)


@pytest.fixture
def together(tmp_path: Path) -> Callable[..., list[Done]]:
    """Run a command as two processes that find each other, each with a part of the environment to itself."""

    def run(
        *words: object,
        environments: tuple[dict[str, str], dict[str, str]] = ({}, {}),
        call: str = "zygote:command",
    ) -> list[Done]:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | own for rank, own in enumerate(environments)]
        return run_together(call, [str(word) for word in words], environments=ranks, folder=tmp_path)

    return run


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    base, first, second = save_model(folder / "base"), write_task(folder / "first"), write_task(folder / "second", 3)
    stream = write_stream(folder / "stream.yaml", base, [first, second])
    made = World(folder, base, first, second, folder / "learnt", folder / "memory", stream, folder / "run")
    for arguments in (
        ["learn", "--model", base, "--task", first, "--memory", made.memory, "--output", made.learnt, *FAST],
        ["run", stream, "--output", made.run],
    ):
        done = run_seekr(arguments, folder)
        assert done.code == 0, done.err
    return made


@pytest.fixture
def world(made_world: World) -> Iterator[World]:
    """The world, which must be the same after the test as before."""
    before = fingerprint(made_world.folder)
    yield made_world
    assert fingerprint(made_world.folder) == before

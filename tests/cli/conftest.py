"""Commands run as real processes, and one world of a model, two tasks, a memory and a run for all tests."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAST, Done, Seekr, World, fingerprint, free_port, save_model, write_stream, write_task

Server = Callable[..., Any]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("output")
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "forkserver.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def ask(
            arguments: list[str],
            where: Path,
            environments: Sequence[dict[str, str]] = ({},),
            powerless: dict[str, str] | None = None,
        ) -> Any:
            processes = [
                {key: str(folder / f"{key}{number}") for key in ("out", "err")} | {"environment": environment}
                for number, environment in enumerate(environments if powerless is None else [powerless])
            ]
            processes[0]["powerless"] = powerless is not None
            request = {"arguments": arguments, "folder": str(where), "processes": processes}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            done = [
                Done(code, *(Path(one[key]).read_text(encoding="utf-8") for key in ("out", "err")))
                for code, one in zip(json.loads(process.stdout.readline()), processes)
            ]
            return done[0] if len(done) == 1 else done

        yield ask
        process.stdin.close()


@pytest.fixture
def seekr(server: Server, tmp_path: Path) -> Seekr:
    """Run a command as a process of its own, in the test's folder."""
    return lambda *arguments: server([str(word) for word in arguments], tmp_path)


@pytest.fixture
def together(server: Server, tmp_path: Path) -> Callable[..., list[Done]]:
    """Run a command as two processes that find each other, each with a part of the environment to itself."""

    def run(*arguments: object, environments: tuple[dict[str, str], dict[str, str]] = ({}, {})) -> list[Done]:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | own for rank, own in enumerate(environments)]
        done: list[Done] = server([str(word) for word in arguments], tmp_path, ranks)
        return done

    return run


@pytest.fixture(scope="session")
def made_world(server: Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    base, first, second = save_model(folder / "base"), write_task(folder / "first"), write_task(folder / "second", 3)
    stream = write_stream(folder / "stream.yaml", base, [first, second])
    made = World(folder, base, first, second, folder / "learnt", folder / "memory", stream, folder / "run")
    for arguments in (
        ["learn", "--model", base, "--task", first, "--memory", made.memory, "--output", made.learnt, *FAST],
        ["run", stream, "--output", made.run],
    ):
        done = server([str(word) for word in arguments], folder)
        assert done.code == 0, done.err
    return made


@pytest.fixture
def world(made_world: World) -> Iterator[World]:
    """The world, which must be the same after the test as before."""
    before = fingerprint(made_world.folder)
    yield made_world
    assert fingerprint(made_world.folder) == before

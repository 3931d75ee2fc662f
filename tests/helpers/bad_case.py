"""How a command that ought to be refused, or to be warned about, is put together."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli_world import World, tokenizer_of, write, write_stream, write_task


@dataclass(frozen=True)
class Case:
    """A command that ought to be refused, or to be warned about.

    Attributes:
        name: the test's.
        says: what the line must hold: the place and the fix.
        arguments: makes what the command needs and gives its words.
        runs: it is only strange; with ``says`` empty not even that.
        whole: started with ``python -m seekr_cl``, imports and all.
    """

    name: str
    says: tuple[str, ...]
    arguments: Callable[[World, Path], list[object]]
    runs: bool = False
    whole: bool = False


GOOD = {"prompt": "a=", "answer": "aa"}


def data(name: str, content: object, *says: str) -> Case:
    """A data file that cannot be learned from; the message names it."""

    def arguments(world: World, folder: Path) -> list[object]:
        return world.learn(folder, task=write(folder / "data.json", content))

    return Case(name, ("data.json", *says), arguments)


def setting(pair: str, *says: str, runs: bool = False) -> Case:
    """A setting on the command line."""
    return Case(pair, says, lambda world, folder: world.learn(folder, *pair.split()), runs)


def learn(name: str, *says: str, runs: bool = False, whole: bool = False, **instead: object) -> Case:
    """Other options; a function makes what it needs of the world and the folder."""

    def arguments(world: World, folder: Path) -> list[object]:
        made = {key: value(world, folder) if callable(value) else value for key, value in instead.items()}
        return world.learn(folder, **made)

    return Case(name, says, arguments, runs, whole)


def stream(name: str, *says: str, **settings: object) -> Case:
    """A stream with other settings."""

    def arguments(world: World, folder: Path) -> list[object]:
        made = {key: value(world, folder) if callable(value) else value for key, value in settings.items()}
        return ["run", world.stream_with(folder, **made), "--output", folder / "run"]

    return Case(name, says, arguments)


def memory(name: str, change: Callable[[Path], object], *says: str) -> Case:
    """A damaged copy of the memory, to be learned on with the right model."""

    def arguments(world: World, folder: Path) -> list[object]:
        change(Path(shutil.copytree(world.memory, folder / "memory")))
        return world.learn(folder, model=world.learnt, task=world.second)

    return Case(name, ("memory", *says), arguments)


def edit_manifest(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        write(path, json.loads(path.read_text(encoding="utf-8")) | changes)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def with_other_tokenizer(world: World, folder: Path) -> Path:
    shutil.copytree(world.learnt, folder / "other")
    tokenizer_of("hgfedcba=?中文").save_pretrained(folder / "other")
    return folder / "other"


def without(name: str) -> Callable[[World, Path], Path]:
    def change(world: World, folder: Path) -> Path:
        shutil.copytree(world.base, folder / "broken")
        (folder / "broken" / name).unlink()
        return folder / "broken"

    return change


def config_file(name: str, content: object, *says: str) -> Case:
    return learn(name, "config.yaml", *says, config=lambda world, folder: write(folder / "config.yaml", content))


def resumed(*changes: str) -> Callable[[World, Path], list[object]]:
    def arguments(world: World, folder: Path) -> list[object]:
        shutil.copytree(world.run, folder / "run")
        return ["run", world.stream, "--output", folder / "run", "--resume", *changes]

    return arguments


def resumed_elsewhere(world: World, folder: Path) -> list[object]:
    shutil.copytree(world.run, folder / "run")
    other = write_task(folder / "second", shift=5)
    return [
        "run",
        write_stream(folder / "s.yaml", world.base, [world.first, other]),
        "--output",
        folder / "run",
        "--resume",
    ]


def evaluated(*more: object) -> Callable[[World, Path], list[object]]:
    def arguments(world: World, folder: Path) -> list[object]:
        words = [getattr(world, word[1:]) if str(word).startswith("@") else word for word in more]
        return ["evaluate", "--model", world.base, "--output", folder / "scores", "--max-new-tokens", "4", *words]

    return arguments


def damaged_run(world: World, folder: Path) -> list[object]:
    words = resumed()(world, folder)
    cut(folder / "run" / "run.json")
    cut(folder / "run" / "run.json")
    return words


def entries(world: World, *more: dict[str, object]) -> list[dict[str, object]]:
    return [{"data": str(world.first), "max_new_tokens": 4}, *more]


def occupied(world: World, folder: Path) -> Path:
    return write(folder / "mine" / "thesis.txt", "months of work").parent

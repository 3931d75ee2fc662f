"""Generations: what a memory was after each task, and which of them it is now.

    manifest.json            the commit marker: the generations that are kept, with hashes, and the current one
    generations/0003.json    one generation in full: parent, model, method, data, and the files of every task

A generation is never changed. Its number counts the commits before it on its own line, so two lines that part after a
rollback both have a generation 3: ``0003`` and ``0003-2``. Whatever changes (commit, rollback, forget, gc) is written
beside the old and takes effect when the marker is renamed into place.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.memory import claims
from seekr_cl.system.files import OURS, checked_path, file_hash, plain_name, read_json, write_json

Result = TypeVar("Result")

FORMAT = "seekr-memory"
VERSION = 3
MANIFEST = "manifest.json"
GENERATIONS = "generations"
_READERS = {1: "the sources before the signals became compact", 2: "the sources up to git 4ee3e57"}
_OURS = re.compile(r"\d{4,}-[\w.-]+\.(jsonl|safetensors)|(importance|state|teacher)-\d{4,}(-\d+)?\.safetensors")
_OUR_GENERATION = re.compile(r"\d{4,}(-\d+)?\.json")
_SAMPLE = re.compile(rb'\{"id": "[0-9a-f]{16}", "prompt": "')
_HEADERS = (b'{"__metadata__":{"kinds":', f'{{"__metadata__":{json.dumps(OURS, separators=(",", ":"))}'.encode())
"""How the header of a file of samples begins, and that of any other safetensors file of a memory."""
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}(\.seekr)?")
"""Former releases' temporary files have no ending."""
_PATIENCE = 10
"""Times a reader begins anew because another process has changed the memory."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as it is on disk.

    Attributes:
        record: name, size and sha256 of its file.
        content: the file.
    """

    record: dict[str, Any]
    content: dict[str, Any]

    @property
    def label(self) -> str:
        """What it is called: its file's name without the ending."""
        return self.record["file"].removesuffix(".json")

    @property
    def number(self) -> int:
        """How many commits led to it."""
        return self.content["generation"]

    @property
    def learnt(self) -> list[str]:
        """Names of the tasks learned in it."""
        return [task["name"] for task in self.content["learnt"]]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """What it keeps of each task."""
        return self.content["tasks"]

    @property
    def method_state(self) -> dict[str, Any] | None:
        """The record of what the method carries to the next task, if it carries something."""
        return self.content.get("method_state")

    def files(self) -> Iterator[dict[str, Any]]:
        """The records of all files it is made of, beside its own."""
        for task in self.tasks:
            yield from task["files"]
            if task.get("teacher") is not None:
                yield task["teacher"]
        for record in (self.content["importance"], self.method_state):
            if record is not None:
                yield record

    @property
    def num_bytes(self) -> int:
        """Size of its files, its own included."""
        return self.record["bytes"] + sum(file["bytes"] for file in self.files())


@dataclass(slots=True)
class Lineage:
    """The generations of one memory.

    Attributes:
        folder: the memory's.
        records: of all generations that are kept, older ones first.
        current: file name of the one the memory is now; ``None`` before the first commit.
        marker_sha256: hash of the manifest's bytes as they were read; ``None`` if there was none.
    """

    folder: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    current: str | None = None
    marker_sha256: str | None = None
    given: set[str] = field(default_factory=set)
    """Names given out for files that no generation names yet."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the manifest; the generations are read when they are asked for.

        Raises:
            MemoryFormatError: if it is not one that this release wrote.
        """
        path = folder / MANIFEST
        marker = read_json(path)
        _check_format(marker, path)
        # The generations' hashes stand in the manifest; its own keeps a flipped digit from choosing another one.
        if marker.pop("sha256", None) != digest(marker):
            raise MemoryFormatError(f"{path}: its content differs from its own sha256; restore the folder from a copy")
        try:
            kept, current = typed(marker["generations"], list), marker["current"]
            names = [plain_name(record["file"], path) for record in kept]
            if len(set(names)) != len(names) or (current is None) != (not kept) or current not in [None, *names]:
                raise ValueError("the current generation is none of those kept")
            for record in kept:
                check_record(record)
                claims.check_file(record, "'generations'")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _damaged(path, error) from error
        return cls(folder, kept, current, file_hash(path))

    def generation(self, name: str) -> Generation:
        """One of those kept, by file name.

        Raises:
            MemoryFormatError: if its file is missing, altered or none.
        """
        record = next(record for record in self.records if record["file"] == name)
        path = checked_path(self.folder / GENERATIONS, record, self.folder / MANIFEST)
        content = read_json(path)
        try:
            _check_generation(content, path)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _damaged(path, error) from error
        return Generation(record, content)

    def all(self) -> list[Generation]:
        """All that are kept, older ones first."""
        return [self.generation(record["file"]) for record in self.records]

    def line(self) -> list[Generation]:
        """The current generation and those it came from, as far back as they are kept; the current one comes last."""
        by_name = {one.record["file"]: one for one in self.all()}
        found: list[Generation] = []
        one = by_name.get(self.current or "")
        while one is not None and one not in found:
            found.insert(0, one)
            parent = one.content["parent"]
            one = by_name.get(parent["file"]) if parent else None
        return found

    def free_name(self, number: int) -> str:
        """A file name for a generation of that number that none kept has, and no file of somebody else's."""
        taken = self.given | {record["file"] for record in self.records}
        free = next(
            name
            for name in _numbered(f"{number:04d}", ".json")
            if name not in taken and not self._is_foreign(self.folder / GENERATIONS / name)
        )
        self.given.add(free)
        return free

    def write_generation(self, name: str, content: dict[str, Any]) -> Generation:
        """Writes a generation's file; it is kept once the marker names it."""
        path = self.folder / GENERATIONS / name
        write_json(path, content, private=True)
        return Generation({"file": name, "bytes": path.stat().st_size, "sha256": file_hash(path)}, content)

    def mark(self, records: list[dict[str, Any]], current: str | None) -> None:
        """Writes the marker: from now on these generations are kept and ``current`` is the memory.

        Raises:
            OutputError: if it cannot be written, or if another process has written one since this one was read.
        """
        self.check_unchanged()
        path = self.folder / MANIFEST
        marker = {"format": FORMAT, "version": VERSION, "current": current, "generations": records}
        write_json(path, {**marker, "sha256": digest(marker)}, private=True)
        self.records, self.current, self.marker_sha256 = records, current, file_hash(path)

    def check_unchanged(self) -> None:
        """Makes sure that nobody else has changed the memory since it was read.

        Raises:
            OutputError: if somebody has.
        """
        path = self.folder / MANIFEST
        if (file_hash(path) if path.is_file() else None) != self.marker_sha256:
            raise OutputError(f"{path}: another process has changed the memory since it was opened; run this again")

    def needed(self) -> dict[str, int]:
        """Size of every file that some kept generation needs, by its path in the folder."""
        sizes = {MANIFEST: 0}
        for one in self.all():
            sizes[f"{GENERATIONS}/{one.record['file']}"] = one.record["bytes"]
            sizes |= {file["file"]: file["bytes"] for file in one.files()}
        return sizes

    def free_stem(self, stem: str, endings: tuple[str, ...]) -> str:
        """A name like ``stem`` that no file of a kept generation has; leftovers of a crash may be overwritten.

        Files that are not known to be leftovers are not.
        """
        taken = self.given | {name.casefold() for name in self.needed()}
        free = next(
            name
            for name in _numbered(stem, "")
            if not {f"{name}{ending}".casefold() for ending in endings} & taken
            and not any(self._is_foreign(self.folder / f"{name}{ending}") for ending in endings)
        )
        self.given |= {f"{free}{ending}".casefold() for ending in endings}
        return free

    def leftovers(self) -> list[Path]:
        """Files of ours that no kept generation needs: from a crash, or from generations that are no longer kept.

        A name alone makes no file ours: it is named by some generation, or its content is of the memory's format.
        Generations come last, since they say what else is ours.
        """
        needed = self.needed()
        old = [path for path in self._files(GENERATIONS) if f"{GENERATIONS}/{path.name}" not in needed]
        old = [path for path in old if self._is_temporary(path.name, _OUR_GENERATION) or _read_old(path) is not None]
        named = {file["file"] for path in old if (one := _read_old(path)) is not None for file in one.files()}
        found = [
            path
            for path in self._files("")
            if path.name not in needed
            and (self._is_temporary(path.name, _OURS) or (_OURS.fullmatch(path.name) and _is_ours(path, named)))
        ]
        return found + old

    def _files(self, place: str) -> list[Path]:
        folder = self.folder / place
        # The memory itself may be reached through a link, its inner folder is none.
        found = sorted(folder.iterdir()) if folder.is_dir() and not (place and folder.is_symlink()) else []
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def _is_foreign(self, path: Path) -> bool:
        """Whether something stands there that is not a leftover, so that it may not be written over."""
        return os.path.lexists(path) and path not in self.leftovers()

    @staticmethod
    def _is_temporary(name: str, ours: re.Pattern[str]) -> bool:
        temporary = _TEMPORARY.fullmatch(name)
        return temporary is not None and (ours.fullmatch(temporary[1]) is not None or temporary[1] == MANIFEST)


def _read_old(path: Path) -> Generation | None:
    """A generation that is not kept any more; ``None`` for any other file."""
    try:
        content = read_json(path)
        _check_generation(content, path)
        return Generation({"file": path.name, "bytes": path.stat().st_size}, content)
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _is_ours(path: Path, named: set[str]) -> bool:
    """Whether a file with a name like a memory's is one: a generation names it, or its beginning says so."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return False
    if path.name in named:
        return True
    if path.suffix == ".jsonl":
        return _SAMPLE.match(start) is not None
    return start[8:].startswith(_HEADERS)


def settled(folder: Path, read: Callable[[], Result], broken: Callable[[Result], bool] = lambda _: False) -> Result:
    """What somebody reads who does not hold the memory: all of one generation, whatever is done to it meanwhile.

    Args:
        folder: the memory's.
        read: reads; does it again where it fails and another process has written a manifest since it began.
        broken: whether what it gave is of a memory that is not whole.

    Raises:
        MemoryFormatError: the one that ``read`` raised, if nobody has.
    """
    for _ in range(_PATIENCE):
        before = _seen(folder)
        try:
            found = read()
        except (MemoryFormatError, OutputError):
            if _seen(folder) == before:
                raise
        else:
            if not broken(found) or _seen(folder) == before:
                return found
    return read()


def _seen(folder: Path) -> tuple[int, ...] | None:
    # Each manifest is a file of its own, renamed into place.
    try:
        state = (folder / MANIFEST).stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def is_new(folder: Path) -> bool:
    """Whether nothing stands in a folder but what a crash left before the first manifest was there."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    temporaries = [_TEMPORARY.fullmatch(path.name) for path in folder.iterdir()]
    return all(temporary is not None and temporary[1] == MANIFEST for temporary in temporaries)


def digest(content: Any) -> str:
    """sha256 of a JSON value, however it is indented."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def typed(value: Any, kind: type) -> Any:
    """The value, if it is of that type and no subclass (JSON's ``true`` is not a count)."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def check_record(record: dict[str, Any]) -> None:
    """Makes sure that a file's record has what it must; names are checked where they are used.

    Raises:
        KeyError, TypeError, ValueError: if not.
    """
    typed(record["sha256"], str)
    if typed(record["bytes"], int) < 0:
        raise ValueError(f"{record['bytes']} bytes")


def _check_format(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MemoryFormatError(f"{path}: not the manifest of a replay memory ('format' is not '{FORMAT}')")
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        reader = _READERS.get(version) if type(version) is int else None
        advice = f"it is read by {reader}; learn its tasks anew" if reader else "update seekr-cl"
        raise MemoryFormatError(f"{path}: format version {version!r}, this release reads {VERSION}; {advice}")


def _check_generation(content: Any, path: Path) -> None:
    """Every value that is used later has its type, so that nothing but a named error can come of it."""
    typed(content, dict)
    if typed(content["generation"], int) < 1:
        raise ValueError("generation below 1")
    for key in ("written", "model_sha256", "tokenizer_sha256"):
        typed(content[key], str)
    for key in ("method", "versions"):
        typed(content[key], dict)
    # Generations of former versions do not say it.
    if content.get("dtype") is not None:
        typed(content["dtype"], str)
    if content["model_folder"] is not None:
        typed(content["model_folder"], str)
    if content["parent"] is not None:
        plain_name(content["parent"]["file"], path)
        typed(content["parent"]["sha256"], str)
    for learnt in typed(content["learnt"], list):
        typed(learnt["name"], str)
    for task in typed(content["tasks"], list):
        typed(task["name"], str)
        typed(task["info"], dict)
        heads_of(task)
        if any(typed(number, int) < 0 for number in typed(task["totals"], dict).values()):
            raise ValueError("a negative count")
        if len(typed(task["files"], list)) != (2 if task["totals"]["samples"] else 0):
            raise ValueError(f"task {task['name']!r} has {len(task['files'])} files")
        teacher = task.get("teacher")
        for file in [*task["files"], *([] if teacher is None else [typed(teacher, dict)])]:
            plain_name(file["file"], path)
            check_record(file)
    if content["importance"] is not None:
        plain_name(content["importance"]["file"], path)
        check_record(content["importance"])
        for layer in typed(content["importance"]["layers"], list):
            typed(layer, int)
    if content.get("method_state") is not None:
        plain_name(content["method_state"]["file"], path)
        check_record(content["method_state"])
        typed(content["method_state"]["method"], str)
        typed(content["method_state"]["content"], dict)
    claims.check_generation(content)


def heads_of(task: dict[str, Any]) -> dict[int, list[int]]:
    """A task's heads, whose layers JSON has as text."""
    return {int(layer): [typed(head, int) for head in typed(heads, list)] for layer, heads in task["heads"].items()}


def _damaged(path: Path, error: Exception) -> MemoryFormatError:
    if isinstance(error, MemoryFormatError):
        return error
    return MemoryFormatError(f"{path}: damaged ({type(error).__name__}: {error}); restore the folder from a copy")


def _numbered(stem: str, ending: str) -> Iterator[str]:
    yield f"{stem}{ending}"
    number = 2
    while True:
        yield f"{stem}-{number}{ending}"
        number += 1

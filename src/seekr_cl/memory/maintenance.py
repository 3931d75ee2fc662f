"""What is done to a memory beside learning: checking it, going back, forgetting, throwing away.

Each change is written beside what is there and takes effect when the manifest is renamed into place; only then are
files deleted. A crash in between leaves the memory as it was or as it was to be, and files that nothing needs, which
``collect`` and ``forget`` delete.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from seekr_cl.errors import ConfigError, MemoryFormatError, OutputError, nearest
from seekr_cl.memory.lineage import GENERATIONS, MANIFEST, Generation, Lineage, settled
from seekr_cl.memory.method_state import load_method_state
from seekr_cl.memory.samples import sample_id
from seekr_cl.memory.shard import StoredSamples
from seekr_cl.memory.store import Chosen, load_importance, load_task, write_samples
from seekr_cl.os_errors import named
from seekr_cl.system.files import sync_folder
from seekr_cl.system.modes import files_like
from seekr_cl.system.removal import give_away, remove_file

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What ``forget`` did.

    Attributes:
        samples: how many were removed; copies in one generation count each.
        generations: labels of the generations that held them.
        importance: whether head importance that was measured on them stays.
        method_state: names of methods whose state, in which they had a part, stays.
        freed: bytes of the files deleted.
    """

    samples: int
    generations: list[str]
    importance: bool
    method_state: list[str]
    freed: int


@named(MemoryFormatError)
def opened(path: str | os.PathLike[str]) -> Lineage:
    """The lineage of a memory with at least one generation.

    Raises:
        MemoryFormatError: if it is none, or its manifest is damaged.
    """
    folder = Path(path)
    try:
        there = (folder / MANIFEST).exists()
    except OSError as error:
        raise MemoryFormatError(f"{folder}: cannot be read ({error.strerror}); change its permissions") from error
    if not there:
        raise MemoryFormatError(f"{folder}: holds no {MANIFEST}, so it is not a replay memory; name an existing memory")
    lineage = Lineage.read(folder)
    if lineage.current is None:
        raise MemoryFormatError(f"{folder}: nothing has been committed to this memory yet; learn a task first")
    return lineage


@named(MemoryFormatError)
def verify(path: str | os.PathLike[str]) -> tuple[list[Generation], list[str]]:
    """Reads every file of every generation that is kept.

    Returns:
        The generations, and a line for everything that is broken.

    Raises:
        MemoryFormatError: if the manifest itself is damaged.
    """
    return settled(Path(path), lambda: _verify(path), lambda found: bool(found[1]))


def _verify(path: str | os.PathLike[str]) -> tuple[list[Generation], list[str]]:
    lineage = opened(path)
    whole, broken, checked = [], [], set()
    for record in lineage.records:
        try:
            one = lineage.generation(record["file"])
        except MemoryFormatError as error:
            broken.append(str(error))
            continue
        whole.append(one)
        source = lineage.folder / GENERATIONS / record["file"]
        for part, load in _parts(lineage.folder, one, source):
            if part in checked:
                continue
            checked.add(part)
            try:
                load()
            except MemoryFormatError as error:
                broken.append(str(error))
    hashes = {record["file"]: record["sha256"] for record in lineage.records}
    for one in whole:
        parent = one.content["parent"]
        if parent and hashes.get(parent["file"], parent["sha256"]) != parent["sha256"]:
            broken.append(
                f"{lineage.folder / GENERATIONS / one.record['file']}: its parent {parent['file']} is not the one it "
                "was made from; restore the folder from a copy"
            )
    return whole, list(dict.fromkeys(broken))


def _in_its_mode(change: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """The change, whose files get the mode that the memory's have."""

    @wraps(change)
    def changed(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        path: Any = args[0] if args else kwargs["path"]
        with files_like(Path(path) / MANIFEST):
            return change(*args, **kwargs)

    return changed


@_in_its_mode
@named()
def rollback(path: str | os.PathLike[str], to: str) -> Generation:
    """Makes the generation after a task current again; later ones stay until ``collect``.

    Args:
        path: the memory.
        to: name of the task, or the label of a generation.

    Returns:
        The generation that is now current.

    Raises:
        ConfigError: if no kept generation is called so, or several on other lines are.
        MemoryFormatError: if that generation is damaged; the current one stays.
    """
    lineage = opened(path)
    kept, line = lineage.all(), lineage.line()
    found = [one for one in line if to in one.learnt][-1:] or [one for one in kept if to in one.learnt]
    # A label names one generation for certain, a task the one on the current line.
    found = [one for one in kept if one.label == to] or found
    if not found:
        names = [name for one in kept for name in one.learnt] + [one.label for one in kept]
        raise ConfigError(
            f"--to: no kept generation was written after {to!r}{nearest(to, names)}; see 'seekr memory log'"
        )
    if len(found) > 1:
        labels = ", ".join(one.label for one in found)
        raise ConfigError(f"--to: {to!r} was learned in {labels}; name one of these")
    target = found[0]
    for _, load in _parts(lineage.folder, target, lineage.folder / GENERATIONS / target.record["file"], full=False):
        load()
    _sweep(lineage, begun_only=True)
    lineage.mark(lineage.records, target.record["file"])
    return target


@_in_its_mode
@named()
def forget(path: str | os.PathLike[str], *, task: str | None = None, sample: str | None = None) -> Forgotten:
    """Removes a task's or one sample's texts and signals from every generation that is kept, and from the disk.

    A task stays in the list with no samples, so that what was learned when remains known. Head importance, sums over
    tasks that cannot be taken apart, stays; so does what the models have learned.

    Args:
        path: the memory.
        task: name of the task; or
        sample: id of the sample. Every copy of the same texts has the same id and goes with it.

    Raises:
        ConfigError: if no kept generation holds it.
        MemoryFormatError: if a generation that has to be written anew is damaged; nothing is changed.
        OutputError: if something cannot be written; nothing is removed then.
    """
    lineage = opened(path)
    freed = _sweep(lineage)
    rewritten: dict[tuple[str, ...], dict[str, Any]] = {}
    gone: dict[int, int] = {}
    holders: list[str] = []
    named: list[Generation] = []
    for one in lineage.all():
        source = lineage.folder / GENERATIONS / one.record["file"]
        changed = False
        for place, record in enumerate(one.tasks):
            if (task is not None and record["name"] != task) or not record["files"]:
                continue
            files = tuple(file["file"] for file in record["files"])
            if files not in rewritten:
                count, stay = _without(lineage.folder, record, source, sample)
                # An older generation may hold more of a task than a later one: the same samples and others.
                gone[place] = max(count, gone.get(place, 0))
                rewritten[files] = record
                if count:
                    rewritten[files] = _forgotten(write_samples(lineage, record, stay, place + 1), task)
            changed |= rewritten[files]["files"] != record["files"]
        if changed:
            holders.append(one.label)
        named.append(one)
    if not any(gone.values()):
        what = f"task {task!r}" if sample is None else f"sample {sample!r}"
        names = [record["name"] for one in named for record in one.tasks] if sample is None else []
        hint = nearest(task or "", names) or "; see 'seekr memory show --samples'"
        raise ConfigError(f"{lineage.folder}: no kept generation holds anything of {what}{hint}")
    _rewrite(lineage, named, rewritten, task)
    importance = any(one.content["importance"] is not None for one in named)
    states = sorted({one.method_state["method"] for one in named if one.method_state is not None})
    return Forgotten(sum(gone.values()), holders, importance, states, freed + _sweep(lineage))


@_in_its_mode
@named()
def collect(path: str | os.PathLike[str], keep: int | None = None) -> tuple[list[str], int]:
    """Removes generations and files that are not needed.

    Args:
        path: the memory.
        keep: how many generations stay, the current one and those before it; default all on the current line.

    Returns:
        Labels of the generations removed, and the bytes freed.

    Raises:
        ConfigError: if ``keep`` is below 1.
    """
    if keep is not None and keep < 1:
        raise ConfigError(f"--keep: {keep} must be at least 1, the current generation")
    lineage = opened(path)
    # Before anything is written, so that a full disk has room for the manifest.
    freed = _sweep(lineage)
    stay = {one.record["file"] for one in (lineage.line() if keep is None else lineage.line()[-keep:])}
    records = [record for record in lineage.records if record["file"] in stay]
    dropped = [record["file"].removesuffix(".json") for record in lineage.records if record["file"] not in stay]
    if dropped:
        lineage.mark(records, lineage.current)
    return dropped, freed + _sweep(lineage)


def _parts(
    folder: Path, one: Generation, source: Path, full: bool = True
) -> list[tuple[tuple[str, ...], Callable[[], Any]]]:
    """What a generation is made of: the files of each part with what reads and checks it."""
    found: list[tuple[tuple[str, ...], Callable[[], Any]]] = []
    for record in one.tasks:
        # Two generations may say different things of the same files, so what they say is part of the name.
        key = (*(file["file"] for file in record["files"]), repr(sorted(record.items())))
        found.append((key, lambda record=record: load_task(folder, record, source, full)))  # type: ignore[misc]
    importance = one.content["importance"]
    if importance is not None:
        key = (importance["file"], repr(sorted(importance.items())))
        found.append((key, lambda: load_importance(folder, importance, source)))
    state = one.method_state
    if state is not None:
        key = (state["file"], repr(sorted(state.items())))
        found.append((key, lambda: _read_state(folder, state, source)))
    return found


def _read_state(folder: Path, record: dict[str, Any], source: Path) -> None:
    state = load_method_state(folder, record, source)
    assert state is not None
    len(state.tensors)


def _without(folder: Path, record: dict[str, Any], source: Path, sample: str | None) -> tuple[int, Sequence[Any]]:
    """How many samples of one task's files are to be forgotten, and those that stay."""
    # A whole task goes unread: damaged signals are no reason to keep somebody's texts.
    if sample is None:
        return record["totals"]["samples"], []
    samples = load_task(folder, record, source, verify=False).samples
    assert isinstance(samples, StoredSamples)
    stay = [number for number in range(len(samples)) if sample_id(*samples.text(number)) != sample]
    return len(samples) - len(stay), Chosen(samples, stay)


def _forgotten(record: dict[str, Any], task: str | None) -> dict[str, Any]:
    if task is None:
        return record
    # The hash of the data would still tell whether somebody's list of texts is the one that was learned.
    return {**record, "heads": {}, "info": {key: value for key, value in record["info"].items() if key == "general"}}


def _rewrite(
    lineage: Lineage, kept: list[Generation], tasks: dict[tuple[str, ...], dict[str, Any]], forgotten: str | None
) -> None:
    """Writes every generation that names a changed file or a changed parent, then the manifest."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new: dict[str, dict[str, Any]] = {}
    for one in sorted(kept, key=lambda one: one.number):
        parent = one.content["parent"]
        learnt = [
            {"name": entry["name"], "forgotten": now} if entry["name"] == forgotten else entry
            for entry in one.content["learnt"]
        ]
        content = {
            **one.content,
            "tasks": [tasks.get(tuple(file["file"] for file in record["files"]), record) for record in one.tasks],
            "learnt": learnt,
        }
        if parent and parent["file"] in new:
            content["parent"] = {"file": new[parent["file"]]["file"], "sha256": new[parent["file"]]["sha256"]}
        if content == one.content:
            continue
        written = lineage.write_generation(lineage.free_name(one.number), {**content, "rewritten": now})
        new[one.record["file"]] = written.record
    records = [new.get(record["file"], record) for record in lineage.records]
    current = new.get(lineage.current or "", {}).get("file", lineage.current)
    lineage.mark(records, current)


def _sweep(lineage: Lineage, begun_only: bool = False) -> int:
    """Deletes leftovers, or only what an interrupted command had begun to write; returns how many bytes they had.

    Raises:
        OutputError: naming the file that cannot be deleted.
    """
    freed = 0
    # An import that was killed at its very end.
    give_away(lineage.folder)
    for path in lineage.leftovers():
        if begun_only and not path.name.startswith("."):
            continue
        try:
            freed += path.lstat().st_size
            remove_file(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be deleted ({error.strerror}); change its permissions") from error
    try:
        for folder in (lineage.folder, lineage.folder / GENERATIONS):
            sync_folder(folder)
    except OSError as error:
        raise OutputError(
            f"{lineage.folder}: what was deleted may come back ({error.strerror}); run this again"
        ) from error
    return freed

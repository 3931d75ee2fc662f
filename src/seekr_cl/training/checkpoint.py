"""Checkpoints of one task that is being learned: directories of JSON and safetensors, valid as a whole or not at all.

    <place>/
      000007/                 the one before, as long as the newest is all there is beside it
      000008/
        state.json            what is not a tensor
        <part>.safetensors    tensors: weights, optimizer, rng, method, ...
        <part>.00001-of-00008.safetensors
                              what process 1 of 8 holds of sharded tensors, where shards are not put together
        manifest.json         names, sizes and hashes of the others; written last

A checkpoint is written under a temporary name and renamed; it is removed only after two newer ones exist. Reading takes
the newest whose files all are what its manifest says.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seekr_cl.distributed import collectives
from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.os_errors import describe
from seekr_cl.system import reading
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.files import checked_path, file_record, sync_folder, write_bytes
from seekr_cl.system.modes import file_mode, folder_mode, make_private
from seekr_cl.system.removal import give_away, is_made, make_folder, remove_empty, remove_known, remove_made

FORMAT = "seekr-checkpoint"
VERSION = 2
MANIFEST, STATE = "manifest.json", "state.json"
KEPT = 2
"""The newest, and one before it in case the disk damages the newest."""

_NAME = re.compile(r"\d{6,12}")
_PIECES = re.compile(r"(.+)\.\d{5}-of-\d{5}")
_PARTS = r"average|carried|carry|importance|kept|method|next_state|optimizer|rng|trainer|weights|task-\d+|teacher-\d+"
_CONTENT = re.compile(
    rf"(state|trainer_state)\.json|({_PARTS})(\.\d{{5}}-of-\d{{5}})?\.safetensors"
    r"|\.(state|trainer_state|manifest)\.json\.[a-z0-9_]{8}(\.seekr)?"
)
"""What can be in one, for those whose manifest is damaged."""
_OWN_NAME = re.compile(r"\.?\d{6,12}(\.partial)?")


class CheckpointWarning(UserWarning):
    """A checkpoint that cannot be used; an older one takes its place."""


class _DamageError(Exception):
    """What is wrong with one checkpoint, in words."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint whose files have been checked.

    Attributes:
        path: its directory.
        state: the content of ``state.json``.
        parts: names of the tensor files without their suffix.
    """

    path: Path
    state: dict[str, Any]
    parts: tuple[str, ...]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part that are whole in its file; none if the checkpoint has no such part.

        Raises:
            OutputError: if the file has been changed since it was checked.
        """
        return self._read(part) if part in self.parts else {}

    def own_pieces(self, part: str) -> dict[str, Tensor]:
        """What this process holds of the part's sharded tensors: rows of each, which may be none."""
        name = _piece(part, collectives.rank(), collectives.world_size())
        return self._read(name) if name in self.parts else {}

    def whole(self, part: str) -> dict[str, Tensor]:
        """All tensors of one part, the pieces of the sharded ones put together."""
        found = [match for match in map(_PIECES.fullmatch, self.parts) if match and match[1] == part]
        pieces = [self._read(match[0]) for match in sorted(found, key=lambda match: match[0])]
        joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}
        return self.tensors(part) | joined

    def _read(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / f"{name}.safetensors")
        except (SafetensorError, OSError) as error:
            raise OutputError(
                f"{self.path}: {name}.safetensors is not readable ({error}); remove that folder"
            ) from error


class Checkpoints:
    """All checkpoints of one task that is being learned.

    Args:
        place: their folder; made by the first ``save``, removed by ``clear``.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._found: tuple[list[int], Checkpoint | None] | None = None

    def any(self) -> bool:
        """Whether something was saved that ``clear`` has not removed."""
        return bool(self.numbers())

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, if there is one; damaged ones are passed over with a warning.

        All processes have to ask; process 0 reads every byte and compares it with the manifest.
        """
        numbers = collectives.broadcast_object(self.numbers())
        # Cached: hashing a large model's state is slow.
        if self._found is None or self._found[0] != numbers:
            found = self._search(numbers) if collectives.is_main() else None
            name = collectives.broadcast_object(found and found.path.name)
            self._found = numbers, found if found or not name else _read(self.place / name, content=False)
        return self._found[1]

    def _search(self, numbers: list[int]) -> Checkpoint | None:
        for number in reversed(numbers):
            path = self.path(number)
            try:
                return _read(path)
            except _DamageError as damage:
                warnings.warn(
                    f"{path}: this checkpoint is damaged ({damage}); the one before it is used, if there is one",
                    CheckpointWarning,
                    stacklevel=3,
                )
        return None

    def save(
        self,
        state: dict[str, Any],
        parts: dict[str, dict[str, Tensor]],
        files: dict[str, str] | None = None,
        pieces: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        """Writes the next checkpoint and then removes the oldest ones; all processes have to call it.

        Args:
            state: JSON; numbers that are not finite are allowed, a loss's average may be one. Of this and all that
                follows but ``pieces``, process 0's is written.
            parts: tensors by the file they go to; parts without tensors are left out.
            files: further texts by file name.
            pieces: what this process holds of sharded tensors, by part; every process writes its own.

        Raises:
            OutputError: if it cannot be written; the checkpoints before it stay.
        """
        numbers = collectives.broadcast_object(self.numbers())
        number = collectives.on_main_broadcast(lambda: self._free_number(numbers[-1] + 1 if numbers else 1))
        temporary = self._unfinished(number)

        def begin() -> None:
            with self._writing(number, temporary):
                make_private(self.place)
                make_folder(temporary, folder_mode())

        def write_own() -> list[dict[str, Any]]:
            with self._writing(number, temporary):
                named = {
                    _piece(part, collectives.rank(), collectives.world_size()): own
                    for part, own in (pieces or {}).items()
                }
                return _write_parts(temporary, named)

        def complete() -> None:
            with self._writing(number, temporary):
                written = {STATE: json.dumps(state)} | (files or {})
                for name, text in written.items():
                    write_bytes(temporary / name, text.encode(), private=True)
                records = [file_record(temporary / name) for name in written] + _write_parts(temporary, parts)
                manifest = {"format": FORMAT, "version": VERSION, "files": records + others}
                signed = json.dumps(manifest | {"sha256": _digest(manifest)}).encode()
                write_bytes(temporary / MANIFEST, signed, private=True)
                # From here on the manifest says what belongs to it.
                give_away(temporary)
                fault_point("checkpoint.written")
                os.replace(temporary, self.path(number))
                fault_point("checkpoint.renamed")
                sync_folder(self.place)

        collectives.on_main(begin)
        others = [record for records in collectives.on_each_rank(write_own) for record in records] if pieces else []
        collectives.on_main(complete)
        for old in [*numbers, number][:-KEPT] if collectives.is_main() else []:
            _remove(self.path(old))
            fault_point("checkpoint.removed")

    @contextmanager
    def _writing(self, number: int, temporary: Path) -> Iterator[None]:
        """What cannot be written leaves nothing, and one message."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            self._discard(temporary)
            # SafetensorError is no OSError, but what it has to say here comes from the disk.
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"{self.path(number)}: the checkpoint cannot be written ({reason}); free space and continue with "
                "--resume"
            ) from error
        except BaseException:
            self._discard(temporary)
            raise

    def clear(self) -> None:
        """Removes all of them, newest last: a kill in between leaves the newest whole or nothing to be misread.

        Raises:
            OutputError: if one cannot be removed.
        """
        try:
            self._clear()
        except OSError as error:
            raise OutputError(f"{self.place}: the checkpoints cannot be removed ({describe(error)})") from error

    def _clear(self) -> None:
        if not self.place.is_dir():
            return
        for path in sorted(self.place.iterdir(), key=lambda path: (path.name.isdigit(), path.name)):
            if _OWN_NAME.fullmatch(path.name):
                _remove(path)
                fault_point("checkpoint.cleared")
        remove_empty(self.place)
        if self.any():
            raise OutputError(f"{self.place}: the checkpoints cannot be removed; remove that folder")

    def _discard(self, temporary: Path) -> None:
        _remove(temporary)
        # Gone unless it holds others.
        remove_empty(self.place)

    def _unfinished(self, number: int) -> Path:
        return self.place / f".{number:06d}.partial"

    def path(self, number: int) -> Path:
        """The folder of the checkpoint of that number."""
        return self.place / f"{number:06d}"

    def numbers(self) -> list[int]:
        """The numbers of all of them, damaged ones too, oldest first."""
        if not self.place.is_dir():
            return []
        return sorted(int(path.name) for path in self.place.iterdir() if _NAME.fullmatch(path.name) and _is_one(path))

    def _free_number(self, number: int) -> int:
        """The first number from this one on at which nothing stands, not even something of somebody else's."""
        while os.path.lexists(self.path(number)) or not _remove(self._unfinished(number)):
            number += 1
        return number


def _is_one(path: Path) -> bool:
    """Whether a folder holds what a checkpoint must hold, damaged or not."""
    return path.is_dir() and any((path / name).is_file() for name in (MANIFEST, STATE))


def _remove(path: Path) -> bool:
    """Removes a checkpoint, whole or not: what its manifest lists or, if that is damaged, what can be in one."""
    if is_made(path):
        return remove_made(path)
    try:
        manifest = _read_manifest(path)
        listed = [str(record["file"]) for record in manifest["files"]]
    except (_DamageError, KeyError, TypeError):
        listed = [file.name for file in path.iterdir() if _CONTENT.fullmatch(file.name)] if path.is_dir() else []
    # Without its manifest a half-removed checkpoint is none.
    return remove_known(path, [MANIFEST, *listed])


def _piece(part: str, number: int, count: int) -> str:
    return f"{part}.{number:05d}-of-{count:05d}"


def _write_parts(folder: Path, parts: dict[str, dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Writes those that have tensors, and says what the manifest notes of them."""
    records = []
    for part, tensors in parts.items():
        if tensors:
            path = folder / f"{part}.safetensors"
            assert _CONTENT.fullmatch(path.name), f"add {part} to _PARTS: a half-removed checkpoint goes by that list"
            _write_part(path, tensors)
            records.append(file_record(path))
            fault_point("checkpoint.part")
    return records


def _write_part(path: Path, tensors: dict[str, Tensor]) -> None:
    # Straight into the file: the bytes of a whole model's optimizer would not fit into memory a second time.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    os.chmod(path, file_mode())
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path, content: bool = True) -> Checkpoint:
    """Opens one checkpoint.

    Args:
        path: its folder.
        content: read all files and compare their hashes.

    Raises:
        _DamageError: if anything in it is not what the manifest says.
    """
    manifest = _read_manifest(path)
    try:
        files = [checked_path(path, record, path / MANIFEST, content=content) for record in manifest["files"]]
        state = json.loads(reading.read_text(path / STATE, limit=None))
        parts = tuple(file.stem for file in files if file.suffix == ".safetensors")
    except MemoryFormatError as error:
        raise _DamageError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamageError(f"{type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise _DamageError(f"{STATE} is not a mapping")
    return Checkpoint(path, state, parts)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = reading.read_json(path / MANIFEST)
    except (OSError, ValueError, RecursionError) as error:
        raise _DamageError(f"{MANIFEST} is not readable: {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        raise _DamageError(f"{MANIFEST} differs from its own sha256")
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise _DamageError(f"{MANIFEST} is of another format or version")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

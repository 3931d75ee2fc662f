"""``benchmark.json``: where a fetched folder comes from, how many rows each file holds, and its hash."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from seekr_cl.errors import DataError
from seekr_cl.system import reading

MANIFEST = "benchmark.json"
_LARGEST = 1 << 24


@dataclass(frozen=True, slots=True)
class Manifest:
    """A folder's ``benchmark.json``, every file in it compared with the folder.

    Attributes:
        path: the file.
        content: what it says.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Self | None":
        """The manifest of a folder, or ``None`` if it has none.

        Raises:
            DataError: if it is damaged, or a file is missing or differs from its hash.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError("too large")
            content = reading.read_json(path)
            files, notes = content["files"], content["notes"]
            records = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in files.items()}
            if not all(isinstance(note, str) for note in notes) or not isinstance(content["source"], str):
                raise TypeError("notes and source must be text")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: damaged ({error!r}); fetch the benchmark again") from None
        for name, record in records.items():
            _check(folder, name, record, path)
        return cls(path, content)

    def origin(self) -> dict[str, Any]:
        """What a run notes of it: the source with its hash, and one hash over all files."""
        files = json.dumps(self.content["files"], sort_keys=True)
        kept = {key: self.content.get(key) for key in ("source", "sha256")}
        return kept | {"files_sha256": hashlib.sha256(files.encode()).hexdigest()}


def _check(folder: Path, name: str, record: tuple[int, str], source: Path) -> None:
    parts = name.split("/")
    if len(parts) != 2 or any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
        raise DataError(f"{source}: {name!r} is not a file of a task; fetch the benchmark again")
    path = folder.joinpath(*parts)
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: missing, though {MANIFEST} lists it; fetch the benchmark again")
    if path.stat().st_size != record[0]:
        raise DataError(f"{path}: {path.stat().st_size} bytes where {MANIFEST} says {record[0]}; fetch it again")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != record[1]:
            raise DataError(f"{path}: its content differs from the sha256 in {MANIFEST}; fetch the benchmark again")

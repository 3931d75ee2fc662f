"""The JSON files of a folder, a zip or a tar, by path: nothing an archive names is ever written to the disk.

Sizes are checked before anything is unpacked, and a member is read up to the size it claims.
"""

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seekr_cl.errors import DataError
from seekr_cl.system import reading

LARGEST_FILE = 1 << 30
"""Bytes of one file: the largest of any published benchmark here is a tenth of that."""
LARGEST_TOTAL = 8 << 30
LARGEST_COUNT = 100_000
LARGEST_RATIO = 200
"""How many times its packed size a text may have; beyond that it is a bomb, not a text."""
_HARMLESS = 1 << 20
"""A file so small is not looked at for its ratio: TRACE repeats short rows."""
_JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")


class Files(Protocol):
    """Files by path."""

    label: str
    names: list[str]

    def read(self, name: str) -> bytes:
        """A file's content."""


@dataclass
class Folder:
    """A folder's files; links are not followed.

    Attributes:
        label: what messages call it.
        names: paths below it, with ``/``.
    """

    label: str
    names: list[str]
    root: Path

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DataError: if it is too large or cannot be read.
        """
        path = self.root / name
        try:
            _allow(self.label, name, path.stat().st_size)
            return reading.read_bytes(path, LARGEST_FILE)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


@dataclass
class Zip:
    """A zip's files.

    Attributes:
        label: what messages call it.
        names: paths in it.
    """

    label: str
    names: list[str]
    archive: zipfile.ZipFile

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DataError: if it is damaged.
        """
        claimed = self.archive.getinfo(name).file_size
        try:
            with self.archive.open(name) as file:
                content = file.read(claimed + 1)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"{self.label}: {name}: damaged ({error}); download the archive again") from None
        return _whole(self.label, name, content, claimed)


@dataclass
class Tar:
    """A tar's files.

    Attributes:
        label: what messages call it.
        names: paths in it.
    """

    label: str
    names: list[str]
    archive: tarfile.TarFile

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DataError: if it is damaged.
        """
        try:
            member = self.archive.getmember(name)
            file = self.archive.extractfile(member)
            content = b"" if file is None else file.read(member.size + 1)
        except (OSError, tarfile.TarError, zlib.error, EOFError) as error:
            raise DataError(f"{self.label}: {name}: damaged ({error}); download the archive again") from None
        return _whole(self.label, name, content, member.size)


@contextmanager
def open_files(source: Path) -> Iterator[Files]:
    """The files of a folder or archive.

    Args:
        source: a folder, ``.zip``, ``.tar``, ``.tar.gz`` or the like; what a file is decides, not its name.

    Yields:
        The files; system files of macOS and Windows are left out.

    Raises:
        DataError: if it is none of these, is damaged, holds a path that leads out of it or a link, or would unpack to
            more than a benchmark can have.
    """
    label = str(source)
    if source.is_dir():
        yield Folder(label, _checked(label, sorted(_walk(source))), source)
        return
    if not source.is_file():
        raise DataError(f"{label}: does not exist; give the folder or archive that was downloaded")
    opened = _zip(label, source) if zipfile.is_zipfile(source) else _tar(label, source)
    with opened.archive:
        yield opened


def _zip(label: str, source: Path) -> Zip:
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{label}: damaged zip ({error}); download it again") from None
    return Zip(label, _zip_names(label, archive, source.stat().st_size), archive)


def _tar(label: str, source: Path) -> Tar:
    try:
        archive = tarfile.open(source)  # noqa: SIM115  whoever asked closes it
        return Tar(label, _tar_names(label, archive, source.stat().st_size), archive)
    except (tarfile.TarError, EOFError, zlib.error, OSError):
        with open(source, "rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html"))
        what = (
            "a web page, not an archive: open the link in a browser and" if page else "neither zip nor tar, or damaged:"
        )
        raise DataError(f"{label}: {what} give the archive's own file") from None


def _walk(root: Path) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                yield path.relative_to(root).as_posix()


def _zip_names(label: str, archive: zipfile.ZipFile, packed: int) -> list[str]:
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        if info.is_dir() or _junk(info.filename):
            continue
        if info.flag_bits & 1:
            raise DataError(f"{label}: {info.filename!r} is encrypted; unpack it yourself and give the folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{label}: {info.filename!r} is a link; refused")
        if info.filename in sizes:
            raise DataError(f"{label}: holds {info.filename!r} twice; download the archive again")
        if info.file_size > max(_HARMLESS, LARGEST_RATIO * info.compress_size):
            raise DataError(
                f"{label}: {info.filename!r} would unpack from {info.compress_size} to {info.file_size} bytes; refused"
            )
        _allow(label, info.filename, info.file_size)
        sizes[info.filename] = info.file_size
    _total(label, sum(sizes.values()), packed)
    return _checked(label, list(sizes))


def _tar_names(label: str, archive: tarfile.TarFile, packed: int) -> list[str]:
    sizes: dict[str, int] = {}
    for member in archive:  # stops at the first header that goes too far, before the rest is unpacked
        if member.isdir() or _junk(member.name):
            continue
        if not member.isreg():
            raise DataError(f"{label}: {member.name!r} is not a plain file; refused")
        if member.name in sizes:
            raise DataError(f"{label}: holds {member.name!r} twice; download the archive again")
        _allow(label, member.name, member.size)
        sizes[member.name] = member.size
        _total(label, sum(sizes.values()), packed)
        if len(sizes) > LARGEST_COUNT:
            break
    return _checked(label, list(sizes))


def _allow(label: str, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{label}: {name!r} has {size} bytes, more than a benchmark's file may have; refused")


def _total(label: str, total: int, packed: int) -> None:
    if total > LARGEST_TOTAL or total > max(_HARMLESS, LARGEST_RATIO * packed):
        raise DataError(f"{label}: would unpack from {packed} to {total} bytes; refused")


def _checked(label: str, names: list[str]) -> list[str]:
    if len(names) > LARGEST_COUNT:
        raise DataError(f"{label}: holds more than {LARGEST_COUNT} files; give the folder of the benchmark alone")
    for name in names:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name:
            raise DataError(f"{label}: {name!r} leads out of the archive; refused")
    return [name for name in names if not _junk(name)]


def _junk(name: str) -> bool:
    parts = name.split("/")
    return parts[-1].startswith("._") or any(part in _JUNK for part in parts)


def _whole(label: str, name: str, content: bytes, claimed: int) -> bytes:
    if len(content) != claimed:
        raise DataError(f"{label}: {name}: unpacks to another size than it claims; download the archive again")
    return content

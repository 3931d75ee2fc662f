"""Writing that either happened or did not, and names and hashes that can be trusted."""

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.system import reading
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.modes import file_mode, make_private
from seekr_cl.system.removal import UNFINISHED_FILE, remove_file

_PLAIN_NAME = re.compile(r"\w[\w.-]{0,98}")
LONGEST_NAME = 100
"""Bytes of a file name: what a tar header holds without extensions."""
LARGEST_JSON = reading.LARGEST_JSON
_CHUNK = 1 << 20
OURS = {"format": "seekr-memory"}
"""Metadata of a memory's safetensors files."""


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """``write_stream`` of one piece."""
    write_stream(path, [content], private)


def write_stream(path: Path, chunks: Iterable[bytes], private: bool = False) -> dict[str, Any]:
    """Writes a file so that a crash leaves the old one or the new one: temporary name, fsync, rename, fsync the folder.

    Args:
        path: the file; its folder is made if it is missing.
        chunks: its content in pieces, so that it never has to fit into RAM.
        private: it holds somebody's texts, so its mode, and that of a folder made for it, is ``modes.file_mode``.

    Returns:
        What a manifest notes of it: name, size in bytes and sha256.

    Raises:
        OutputError: if the folder cannot be written or the disk is full; the old file is untouched.
    """
    temporary = ""
    try:
        if private:
            make_private(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(UNFINISHED_FILE, f".{path.name}.", path.parent)
        digest, size = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would shut out colleagues from scores and plots.
        os.chmod(temporary, file_mode() if private else 0o644)
        fault_point("file.written")
        os.replace(temporary, path)
        temporary = ""
        fault_point("file.renamed")
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    finally:
        if temporary:
            # A disk that does not even let go of the file is no second error; the first one says what is wrong.
            with suppress(OSError):
                remove_file(Path(temporary))
    return {"file": path.name, "bytes": size, "sha256": digest.hexdigest()}


def read_chunks(path: Path) -> Iterable[bytes]:
    """A file's content in pieces."""
    with reading.open_plain(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def read_json(path: Path) -> Any:
    """A JSON file of the memory.

    Raises:
        MemoryFormatError: if it is missing, unreadable, larger than any that is written here, or no JSON.
    """
    try:
        _require_small(path, path.stat().st_size)
        return reading.read_json(path)
    except OSError as error:
        raise MemoryFormatError(f"{path}: not readable ({error.strerror}); restore the folder from a copy") from error
    except ValueError as error:
        if isinstance(error, MemoryFormatError):
            raise
        raise MemoryFormatError(f"{path}: not readable as JSON ({error}); restore the folder from a copy") from error


def _require_small(path: Path, size: int) -> None:
    if size > reading.LARGEST_JSON:
        raise MemoryFormatError(f"{path}: {size} bytes are too many for a manifest; restore it from a copy")


def file_above(path: Path) -> Path | None:
    """The file that stands where a folder above ``path`` would have to be, if there is one."""
    return next((above for above in path.parents if above.is_file()), None)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Any, private: bool = False) -> None:
    """``write_bytes`` of indented JSON in UTF-8."""
    write_bytes(path, _json_bytes(content), private)


def keep_json(path: Path, content: Any) -> None:
    """``write_json`` where the file does not say just that already, so that a full disk costs nothing."""
    text = _json_bytes(content)
    if not (path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text):
        write_bytes(path, text)


def write_tensors(path: Path, tensors: dict[str, Tensor], private: bool = True) -> None:
    """``write_bytes`` of a safetensors file of a memory, which says so."""
    write_bytes(path, tensor_bytes(tensors), private)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of a memory; its header's metadata tells it from anybody else's."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, OURS)


def file_record(path: Path) -> dict[str, Any]:
    """What a manifest notes of a file: its name, size in bytes and sha256."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_name(name: Any, source: Path) -> str:
    """A name from a file, if it can only mean a file beside it.

    Raises:
        MemoryFormatError: naming ``source``, for anything but a plain file name.
    """
    if (
        not isinstance(name, str)
        or not _PLAIN_NAME.fullmatch(name)
        or len(name.encode("utf-8", "replace")) > LONGEST_NAME
    ):
        raise MemoryFormatError(f"{source}: {name!r} is not a plain file name; the manifest has been tampered with")
    return name


def checked_path(folder: Path, record: dict[str, Any], source: Path, *, content: bool = True) -> Path:
    """The file a manifest's record names, inside ``folder``, of the right size and content.

    Args:
        folder: where it must lie.
        record: its name, size and sha256.
        source: the manifest, for messages.
        content: read it and compare its sha256; otherwise only its size is checked.

    Raises:
        MemoryFormatError: for a name that is not a plain file name, and for a missing, truncated or altered file.
    """
    path = folder / plain_name(record.get("file"), source)
    try:
        state = path.lstat()
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"not readable ({error.strerror})"
        raise MemoryFormatError(f"{path}: {reason}; restore it or the whole folder from a copy") from error
    if not stat.S_ISREG(state.st_mode):
        raise MemoryFormatError(f"{path}: not a regular file; restore it or the whole folder from a copy")
    size = state.st_size
    if path.suffix == ".json":
        _require_small(path, size)
    if size != record.get("bytes"):
        raise MemoryFormatError(
            f"{path}: {size} bytes where the manifest says {record.get('bytes')}; it is truncated or altered, "
            "restore it from a copy"
        )
    if content:
        try:
            reading.open_plain(path).close()
            found = file_hash(path)
        except OSError as error:
            raise MemoryFormatError(f"{path}: not readable ({error.strerror}); restore it from a copy") from error
        if found != record.get("sha256"):
            raise MemoryFormatError(f"{path}: its content differs from the manifest's sha256; restore it from a copy")
    return path

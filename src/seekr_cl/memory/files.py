"""Writing that either happened or did not, and names and hashes that can be trusted."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.faults import fault_point

_PLAIN_NAME = re.compile(r"\w[\w.-]{0,250}")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a crash leaves the old one or the new one: temporary name, fsync, rename, fsync the folder.

    Raises:
        OutputError: if the folder cannot be written or the disk is full; the old file is untouched.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would shut out the colleagues a memory is handed to.
        os.chmod(temporary, 0o644)
        fault_point("file.written")
        os.replace(temporary, path)
        fault_point("file.renamed")
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


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


def write_json(path: Path, content: Any) -> None:
    """``write_bytes`` of indented JSON in UTF-8."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """``write_bytes`` of a safetensors file."""
    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def file_record(path: Path) -> dict[str, Any]:
    """What a manifest notes of a file: its name, size in bytes and sha256."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_path(folder: Path, record: dict[str, Any], source: Path) -> Path:
    """The file a manifest's record names, inside ``folder``, of the right size and content.

    Raises:
        MemoryFormatError: for a name that is not a plain file name, and for a missing, truncated or altered file.
    """
    name = record.get("file")
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise MemoryFormatError(f"{source}: {name!r} is not a plain file name; the manifest has been tampered with")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise MemoryFormatError(f"{path}: missing; restore it or the whole folder from a copy")
    size = path.stat().st_size
    if size != record.get("bytes"):
        raise MemoryFormatError(
            f"{path}: {size} bytes where the manifest says {record.get('bytes')}; it is truncated or altered, "
            "restore it from a copy"
        )
    if file_hash(path) != record.get("sha256"):
        raise MemoryFormatError(f"{path}: its content differs from the manifest's sha256; restore it from a copy")
    return path

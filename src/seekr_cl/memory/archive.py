"""A memory as one file for another machine: a plain tar, written and read strictly.

Members come in this order: ``manifest.json``, the generations, the files they name. On reading, whatever is not one of
these (a link, a folder, a path, a second member of the same name, more bytes than the file has) refuses the archive
before anything of it is written.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.memory.lineage import FORMAT, GENERATIONS, MANIFEST, VERSION, Lineage, digest, settled
from seekr_cl.memory.maintenance import opened, verify
from seekr_cl.memory.store import ReplayMemory
from seekr_cl.os_errors import named
from seekr_cl.system.files import file_above, plain_name, read_chunks, sync_folder, write_stream
from seekr_cl.system.locks import hold
from seekr_cl.system.modes import file_mode, files_like, folder_mode
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.system.reading import open_plain
from seekr_cl.system.removal import give_away, make_folder, remove_made, remove_unfinished, unfinished_folder

_BLOCK = 512
_CHUNK = 1 << 20
_GENERATION = re.compile(rf"{GENERATIONS}/(\d{{4,}}(-\d+)?\.json)")


@named()
def export(path: str | os.PathLike[str], target: str | os.PathLike[str], *, every: bool = False) -> int:
    """Writes a memory into one file.

    Args:
        path: the memory.
        target: the file; must not exist.
        every: all generations that are kept instead of the current one alone.

    Returns:
        Its size in bytes.

    Raises:
        MemoryFormatError: if the memory is damaged; everything that goes in is read and compared first.
        OutputError: if the file is there already or cannot be written.
    """
    out = Path(target)
    taken = OutputError(f"{out}: already exists; choose another file or remove it first")
    if out.exists() and not out.is_file():
        raise taken
    with hold(out, "archive"), files_like(Path(path) / MANIFEST):
        # Before the refusal: what a killed export of the same file left goes either way.
        remove_unfinished(out)
        if out.exists():
            raise taken
        return settled(Path(path), lambda: _export(opened(path), out, every))


def _export(lineage: Lineage, out: Path, every: bool) -> int:
    path = lineage.folder
    if every:
        broken = verify(path)[1]
        if broken:
            raise MemoryFormatError(broken[0])
    else:
        ReplayMemory.open(path, verify=True)
        lineage.records = [record for record in lineage.records if record["file"] == lineage.current]
    marker: dict[str, Any] = {"format": FORMAT, "version": VERSION, "current": lineage.current}
    marker |= {"generations": lineage.records}
    manifest = _json({**marker, "sha256": digest(marker)})
    needed = {name: size for name, size in lineage.needed().items() if name != MANIFEST}
    # Generations first: whoever reads the archive front to back knows from them what is to come.
    ordered = sorted(needed, key=lambda name: (not name.startswith(GENERATIONS), name))

    def content() -> Iterator[bytes]:
        yield from _member(MANIFEST, len(manifest), iter([manifest]))
        for name in ordered:
            yield from _member(name, needed[name], iter(read_chunks(lineage.folder / name)))
        yield bytes(2 * _BLOCK)

    return write_stream(out, content(), private=True)["bytes"]


@named()
def import_(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> ReplayMemory:
    """Makes a memory folder of what ``export`` wrote.

    Args:
        source: the file.
        path: the new folder; must be missing or empty.

    Returns:
        The memory, every file of it compared with its hash.

    Raises:
        MemoryFormatError: if the archive is not one, or damaged; no folder is made.
        OutputError: if the folder holds something or cannot be written.
    """
    archive, folder = Path(source), Path(path)
    above = file_above(folder)
    if above is not None or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder}: already exists and is not empty; choose another folder")
    refuse_mount(folder)
    remove_unfinished(folder)
    temporary = unfinished_folder(folder)
    try:
        with open_plain(archive) as file:
            members = _members(file, archive)
            make_folder(temporary, folder_mode())
            _extract(file, members, temporary)
    except OSError as error:
        remove_made(temporary)
        raise MemoryFormatError(f"{archive}: cannot be read ({error.strerror})") from error
    except BaseException:
        remove_made(temporary)
        raise
    try:
        broken = verify(temporary)[1]
        strangers = set(members) - set(Lineage.read(temporary).needed()) if not broken else set()
        if broken or strangers:
            what = broken[0].replace(f"{temporary}{os.sep}", "") if broken else f"{min(strangers)} belongs to nothing"
            raise MemoryFormatError(f"{archive}: damaged: {what}")
        # An empty folder that is there gives way to it, one that is not stays.
        os.replace(temporary, folder)
        give_away(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    except MemoryFormatError as error:
        raise MemoryFormatError(str(error).replace(str(temporary), str(archive))) from error
    finally:
        remove_made(temporary)
    return ReplayMemory.open(folder)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _member(name: str, size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, file_mode()
    yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    yield from chunks
    yield bytes(-size % _BLOCK)


def _members(file: IO[bytes], archive: Path) -> dict[str, tuple[int, int]]:
    """Where each member begins and how long it is; nothing but headers is read."""
    whole = os.fstat(file.fileno()).st_size
    found: dict[str, tuple[int, int]] = {}
    at = 0
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise MemoryFormatError(f"{archive}: not an exported memory ({error}); export it again") from error
        name, size = info.name, info.size
        if info.type != tarfile.REGTYPE:
            raise MemoryFormatError(f"{archive}: {name!r} is not a plain file; refused")
        inner = _GENERATION.fullmatch(name)
        plain_name(inner[1] if inner else name, archive)
        if name in found or (not found and name != MANIFEST):
            raise MemoryFormatError(f"{archive}: {name!r} is not expected there; refused")
        if not 0 <= size <= whole - at - _BLOCK:
            raise MemoryFormatError(f"{archive}: {name!r} claims {size} bytes, more than the file has; it is truncated")
        found[name] = (at + _BLOCK, size)
        at += _BLOCK + size + -size % _BLOCK
    if not found:
        raise MemoryFormatError(f"{archive}: holds nothing; export it again")
    return found


def _extract(file: IO[bytes], members: dict[str, tuple[int, int]], folder: Path) -> None:
    for name, (begin, size) in members.items():
        write_stream(folder / name, _part(file, begin, size), private=True)


def _part(file: IO[bytes], begin: int, size: int) -> Iterator[bytes]:
    file.seek(begin)
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            return
        yield chunk
        size -= len(chunk)

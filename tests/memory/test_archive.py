"""A memory as one file: what goes in comes out, and an archive from a stranger writes nothing outside its folder."""

import errno
import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from made_memory import commit, make_task, read_all

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.memory import ReplayMemory, archive
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.memory.lineage import Lineage


@pytest.fixture
def packed(folder: Path) -> Path:
    archive.export(folder, folder.parent / "memory.tar", every=True)
    return folder.parent / "memory.tar"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def repack(path: Path, found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in found:
            tar.addfile(info, io.BytesIO(content))


def refused(path: Path, says: str) -> None:
    target = path.parent / "imported"
    with pytest.raises(MemoryFormatError, match=says) as caught:
        archive.import_(path, target)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {p.name for p in path.parent.iterdir()} <= {"memory", "memory.tar"}


def test_all_generations_or_the_current_one(folder: Path, packed: Path, tmp_path: Path) -> None:
    memory = archive.import_(packed, tmp_path / "whole")
    marker = {"manifest.json"}
    assert {k: v for k, v in files(memory.path).items() if k not in marker} == {
        k: v for k, v in files(folder).items() if k not in marker
    }
    assert upkeep.rollback(memory.path, "first").label == "0001"
    size = archive.export(folder, tmp_path / "one.tar")
    assert size == (tmp_path / "one.tar").stat().st_size < packed.stat().st_size
    memory = archive.import_(tmp_path / "one.tar", tmp_path / "one")
    assert [one.label for one in Lineage.read(memory.path).all()] == ["0002"]
    assert not (memory.path / "importance-0001.safetensors").exists()
    assert upkeep.verify(memory.path)[1] == []
    memory.check_belongs("m2", "t")
    commit(memory, make_task("third", 4), model="m3")
    assert [task.name for task in read_all(memory.path, verify=True).tasks] == ["first", "second", "third"]


def test_an_ordinary_tar_reads_it(packed: Path) -> None:
    assert [info.name for info, _ in members(packed)][:3] == ["manifest.json", "generations/0001.json",
                                                              "generations/0002.json"]  # fmt: skip


def test_leftovers_and_strangers_files_stay_behind(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "0009-x.safetensors").write_text("half")
    archive.export(folder, tmp_path / "x.tar")
    assert not {"notes.txt", "0009-x.safetensors"} & {info.name for info, _ in members(tmp_path / "x.tar")}


def test_neither_overwrites_anything(folder: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"memory\.tar: already exists"):
        archive.export(folder, packed)
    for place in (folder, packed, packed / "below"):
        with pytest.raises(OutputError, match="already exists and is not empty"):
            archive.import_(packed, place)
    (tmp_path / "empty").mkdir()
    assert archive.import_(packed, tmp_path / "empty").generation == 2


def test_what_a_killed_export_left_goes_with_the_next(folder: Path, packed: Path) -> None:
    """Also where the next one is refused, since the archive is there."""
    left = [packed.parent / f".{packed.name}.abcdefg1.seekr", packed.parent / f".{packed.name}.lock"]
    for path in left:
        path.write_bytes(b"")
    with pytest.raises(OutputError, match="already exists"):
        archive.export(folder, packed)
    assert not [path for path in left if path.exists()]


def test_a_damaged_memory_is_not_exported(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "0002-second.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "0002-second.safetensors").write_bytes(content)
    for every in (True, False):
        with pytest.raises(MemoryFormatError, match=r"0002-second\.safetensors"):
            archive.export(folder, tmp_path / "x.tar", every=every)
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize(
    "name", ["../outside.json", "/tmp/seekr-outside", "sub/0001-first.jsonl", "generations/../x.json", ".hidden", "..",
             "generations/x.json", "generations/", "a\\b", "./manifest.json"],
)  # fmt: skip
def test_names_that_are_paths(packed: Path, name: str) -> None:
    found = members(packed)
    found[-1][0].name = name
    repack(packed, found)
    refused(packed, "not a plain file name|is not a plain file")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files(packed: Path, kind: bytes) -> None:
    found = members(packed)
    info, _ = found[-1]
    info.type, info.linkname, info.size = kind, "/etc/passwd", 0
    repack(packed, [*found[:-1], (info, b"")])
    refused(packed, "is not a plain file; refused")


def test_members_in_excess_missing_or_twice(packed: Path) -> None:
    found = members(packed)
    extra = tarfile.TarInfo("run.py")
    extra.size = 4
    for wrong, says in (
        ([*found, (extra, b"evil")], "run.py belongs to nothing"), (found[:-1], "missing"),
        ([*found, found[-1]], "not expected there"), (found[1:], "not expected there"), ([], "holds nothing"),
    ):  # fmt: skip
        repack(packed, wrong)
        refused(packed, says)


def test_sizes_are_checked_before_anything_is_written(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = packed.read_bytes()
    monkeypatch.setattr(archive, "_extract", None)
    for size in (1 << 60, 1 << 40, len(content)):
        info = tarfile.TarInfo("manifest.json")
        info.size = size
        packed.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + content[512:])
        refused(packed, "more than the file has")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\0" * 1024, b"x" * 2048])
def test_no_archive(packed: Path, content: bytes) -> None:
    packed.write_bytes(content)
    refused(packed, "not an exported memory|holds nothing")
    packed.unlink()
    refused(packed, "cannot be read")


def test_a_flipped_byte_or_a_cut(packed: Path) -> None:
    whole = packed.read_bytes()
    # Between members there is padding, which belongs to none of them.
    for place in [info.offset_data + info.size // 2 for info, _ in members(packed)]:
        content = bytearray(whole)
        content[place] ^= 1
        packed.write_bytes(content)
        refused(packed, "differs|damaged|not the manifest|not readable|truncated|format version")
    packed.write_bytes(whole[:4000])
    refused(packed, "truncated|not an exported memory")


def test_a_full_disk(folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, iter(range(0))

    def full(*args: Any) -> None:
        if next(calls) == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    for at in range(len(members(packed)) + 1):
        calls = iter(range(at, -100, -1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(OutputError, match="No space left"):
                archive.import_(packed, tmp_path / "new")
        assert {path.name for path in tmp_path.iterdir()} == {"memory", "memory.tar"}
    calls = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="No space left"):
            archive.export(folder, tmp_path / "x.tar")
    assert {path.name for path in tmp_path.iterdir()} == {"memory", "memory.tar"}
    shutil.rmtree(folder)
    assert ReplayMemory.open(archive.import_(packed, folder).path).generation == 2

"""Whatever is done to a memory's files, opening it gives a memory or one of the library's errors."""

import copy
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_memory import VOCABULARY, commit, current_of, make_task, put_right, remark, resign

from seekr_cl.attention import DenseRows
from seekr_cl.attention.stored import collate_rows
from seekr_cl.errors import SeekrError
from seekr_cl.memory import ReplayMemory, archive, shard
from seekr_cl.memory.claims import Limits, check_fits
from seekr_cl.system.files import file_record
from seekr_cl.system.sizes import size

MANY = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(0, 255) | st.sampled_from([1 << 8, 1 << 16, (1 << 31) - 1, (1 << 32) - 1])
HUGE = st.sampled_from([10**18, 1 << 62, 1 << 64, 10**400, -1, -(1 << 40)])
MODEL = Limits(tokens=VOCABULARY, outputs=VOCABULARY, layers=3, heads=4, length=64)


@pytest.fixture(scope="module")
def original() -> Iterator[Path]:
    # In RAM where there is such a folder: thousands of copies are written, and synced one by one.
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=ram) as folder:
        memory = ReplayMemory(Path(folder) / "memory")
        commit(memory, make_task("first"))
        commit(memory, make_task("second", 2))
        yield memory.path


@contextmanager
def copied(original: Path) -> Iterator[Path]:
    """A copy to be damaged: links to the files, so that only what is changed costs anything."""
    with tempfile.TemporaryDirectory(dir=original.parent) as where:
        yield Path(shutil.copytree(original, Path(where) / "memory", copy_function=os.link))


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document but its root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [found for key, child in items for found in [(*path, key), *places(child, (*path, key))]]


def open_and_use(folder: Path) -> None:
    """Opens it and touches what training touches."""
    memory = ReplayMemory.open(folder, create=True)
    memory.check_belongs(memory.model_sha256, memory.tokenizer_sha256)
    assert size(memory.num_bytes)
    layers = () if memory.importance is None else memory.importance.layers
    check_fits(memory.tasks, layers, MODEL, str(folder))
    # What fits the model can be looked up in it.
    embedding_V, heads_NH = torch.zeros(MODEL.tokens), torch.zeros(3, 4)
    assert heads_NH[list(layers)].shape == (len(layers), 4)
    for task, sample in memory.samples:
        assert task.name + sample.prompt + sample.completion is not None
        assert len(embedding_V[sample.ids_L]) == len(sample.ids_L) > 0
        assert all(len(heads_NH[layer, heads]) == len(heads) for layer, heads in task.heads.items())
        if sample.attention is not None:
            for layer, heads in task.heads.items():
                rows = sample.attention.of_layer(task.heads, layer)
                teacher = collate_rows([rows], [0], len(sample.attention.query_R), len(sample.ids_L))
                assert len(teacher.prob_PRL if isinstance(teacher, DenseRows) else teacher.prob_PRK) == len(heads)
        if sample.logits is not None:
            prob_AK, token_AK, tail_A, _ = sample.logits.decode()
            assert embedding_V[token_AK].shape == prob_AK.shape
            assert prob_AK.shape[0] == len(sample.logits.position_A) > 0
            assert tail_A.isfinite().all()


def changed(data: st.DataObject, document: Any) -> Any:
    """The document with any value in any place, or without that place."""
    place = data.draw(st.sampled_from(places(document)))
    value, drop = data.draw(JSON | NUMBERS | HUGE), data.draw(st.booleans())
    node = document
    for key in place[:-1]:
        node = node[key]
    if drop and isinstance(node, dict):
        del node[place[-1]]
    else:
        node[place[-1]] = copy.deepcopy(value)
    return document


@MANY
@given(data=st.data())
def test_any_value_anywhere_in_manifest_and_generation(original: Path, data: st.DataObject) -> None:
    with copied(original) as folder:
        marker, generation = folder / "manifest.json", current_of(folder)
        for path in (marker, generation):
            overwrite(path, path.read_bytes())
        if data.draw(st.integers(0, 3)) == 0:
            remark(folder, lambda document: changed(data, document))
        else:
            resign(folder, lambda document: changed(data, document))
        with suppress(SeekrError):
            open_and_use(folder)


@MANY
@given(data=st.data())
def test_any_byte_of_any_file(original: Path, data: st.DataObject) -> None:
    """One byte is always found, in every file the current generation is made of."""
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    older = {"generations/0001.json", "importance-0001.safetensors"}
    name = data.draw(st.sampled_from([str(file) for file in files if str(file) not in older]))
    content = bytearray((original / name).read_bytes())
    place, flipped = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    content[place] ^= flipped
    with copied(original) as folder:
        overwrite(folder / name, content)
        with pytest.raises(SeekrError, match=r"memory/"):
            open_and_use(folder)


@MANY
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), inner=st.booleans())
def test_any_content_as_the_manifest(original: Path, content: bytes, inner: bool) -> None:
    with copied(original) as folder:
        if not inner:
            overwrite(folder / "manifest.json", content)
        else:
            path = current_of(folder)
            overwrite(path, content)
            overwrite(folder / "manifest.json", (folder / "manifest.json").read_bytes())
            put_right(folder, path)
        with pytest.raises(SeekrError, match=r"000[12]\.json" if inner else r"manifest\.json"):
            ReplayMemory.open(folder)


def sealed(header: bytes, place_N4: Any, index_NW: Any, content: bytes) -> bytes:
    """The file of these parts, every sample's checksum what it would be if they had been written so."""
    for place_4, row in zip(place_N4, index_NW):
        crc = zlib.crc32(content[max(0, place_4[0]) : max(0, place_4[1])])
        row[-1] = shard._seal(zlib.crc32(header), place_4, row[:-1], crc)
    return header + place_N4.tobytes() + index_NW.tobytes() + content


@MANY
@given(data=st.data())
def test_any_number_in_a_well_sealed_task_file(original: Path, data: st.DataObject) -> None:
    """Header, places, shapes, kinds and signals from somebody who knows the format and gets every checksum right."""
    content = (original / "0001-first.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    (count, _), (_, width) = header["place"]["shape"], header["index"]["shape"]
    place_N4 = np.frombuffer(content, "<i8", count * 4, end).reshape(count, 4).copy()
    index_NW = np.frombuffer(content, "<u4", count * width, end + place_N4.nbytes).reshape(count, width).copy()
    signals = bytearray(content[end + place_N4.nbytes + index_NW.nbytes :])
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.integers(0, 4))
        if part == 0:
            row, column = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))
            place_N4[row, column] = data.draw(NUMBERS | st.sampled_from([-1, -(1 << 63), (1 << 63) - 1]))
        elif part == 1:
            row, column = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, width - 2))
            index_NW[row, column] = data.draw(NUMBERS)
        elif part == 2:
            signals[data.draw(st.integers(0, len(signals) - 1))] = data.draw(st.integers(0, 255))
        elif part == 3:
            kinds = json.loads(header["__metadata__"]["kinds"])
            header["__metadata__"]["kinds"] = json.dumps(changed(data, kinds))
            break
        else:
            header = changed(data, header)
            break
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path_bytes = sealed(struct.pack("<Q", len(text)) + text, place_N4, index_NW, bytes(signals))
    with copied(original) as folder:
        overwrite(folder / "0001-first.safetensors", path_bytes)
        for path in (folder / "manifest.json", current_of(folder)):
            overwrite(path, path.read_bytes())
        record = file_record(folder / "0001-first.safetensors")
        resign(folder, lambda document: document["tasks"][0]["files"].__setitem__(1, record))
        with suppress(SeekrError):
            open_and_use(folder)


@MANY
@given(content=st.binary(max_size=200), at=st.integers(0, 1 << 12), cut=st.none() | st.integers(0, 1 << 12))
def test_any_bytes_in_a_task_file(original: Path, content: bytes, at: int, cut: int | None) -> None:
    with copied(original) as folder:
        which = at % 2
        name = ["0001-first.jsonl", "0001-first.safetensors"][which]
        former = (folder / name).read_bytes()
        at %= len(former)
        overwrite(folder / name, (former[:at] + content + former[at + len(content) :])[:cut])
        for path in (folder / "manifest.json", current_of(folder)):
            overwrite(path, path.read_bytes())
        record = file_record(folder / name)
        resign(folder, lambda document: document["tasks"][0]["files"].__setitem__(which, record))
        with suppress(SeekrError):
            open_and_use(folder)


@MANY
@given(data=st.data())
def test_any_bytes_in_an_archive(original: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir=original.parent) as where:
        file = Path(where) / "memory.tar"
        if not (original.parent / "whole.tar").exists():
            archive.export(original, original.parent / "whole.tar", every=True)
        content = bytearray((original.parent / "whole.tar").read_bytes())
        # Headers are few among the bytes, and the first of the file's blocks are most of them.
        at = data.draw(
            st.integers(0, len(content) - 1) | st.integers(0, len(content) // 512 - 1).map(lambda n: 512 * n)
        )
        piece = data.draw(st.binary(min_size=1, max_size=24))
        content[at : at + len(piece)] = piece
        file.write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2, at]))])
        with suppress(SeekrError):
            read = archive.import_(file, Path(where) / "imported")
            assert len(read.samples) == 4
        found = {path.name for path in Path(where).iterdir()}
        assert found <= {"memory.tar", "imported"}

"""Whatever is done to a memory's files, opening it gives a memory or one of the library's errors."""

import copy
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_memory import commit, make_task, resign

from seekr_cl.attention import DenseRows
from seekr_cl.attention.stored import collate_rows
from seekr_cl.errors import SeekrError
from seekr_cl.memory import ReplayMemory

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    memory = ReplayMemory(tmp_path_factory.mktemp("fuzz") / "memory")
    commit(memory, make_task("first"), make_task("second", 2))
    return memory.path


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document but its root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [found for key, child in items for found in [(*path, key), *places(child, (*path, key))]]


def open_and_use(folder: Path) -> None:
    """Opens it and touches what training touches."""
    memory = ReplayMemory.open(folder, create=True)
    memory.check_belongs(memory.model_sha256, memory.tokenizer_sha256)
    assert memory.num_bytes > 0
    for task, sample in memory.samples:
        assert task.name + sample.prompt + sample.completion is not None
        for layer, heads in task.heads.items():
            rows = sample.attention.of_layer(task.heads, layer)
            teacher = collate_rows([rows], [0], len(sample.attention.query_R), len(sample.ids_L))
            assert len(teacher.prob_PRL if isinstance(teacher, DenseRows) else teacher.prob_PRK) == len(heads)
        assert sample.logits.decode()[0].shape[0] == len(sample.logits.position_A)


@QUICK
@given(data=st.data())
def test_any_value_anywhere_in_the_manifest(original: Path, data: st.DataObject) -> None:
    manifest = json.loads((original / "manifest.json").read_text("utf-8"))
    manifest.pop("sha256")
    place = data.draw(st.sampled_from(places(manifest)))
    value, drop = data.draw(JSON), data.draw(st.booleans())

    def change(document: Any) -> None:
        for key in place[:-1]:
            document = document[key]
        if drop and isinstance(document, dict):
            del document[place[-1]]
        else:
            document[place[-1]] = copy.deepcopy(value)

    with tempfile.TemporaryDirectory() as where:
        folder = Path(shutil.copytree(original, Path(where) / "memory"))
        resign(folder, change)
        with suppress(SeekrError):
            open_and_use(folder)


@QUICK
@given(data=st.data())
def test_any_byte_of_any_file(original: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in original.iterdir())))
    content = bytearray((original / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as where:
        folder = Path(shutil.copytree(original, Path(where) / "memory"))
        content[place] ^= flipped
        (folder / name).write_bytes(content)
        with pytest.raises(SeekrError, match=r"memory/"):
            open_and_use(folder)


@QUICK
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_content_as_the_manifest(original: Path, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as where:
        (Path(where) / "manifest.json").write_bytes(content)
        with pytest.raises(SeekrError, match=r"manifest\.json"):
            ReplayMemory.open(where)

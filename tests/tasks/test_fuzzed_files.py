"""Whatever a stream file or a data file holds, reading it gives tasks or one of the library's errors."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seekr_cl.errors import SeekrError
from seekr_cl.tasks import StreamSpec, Task
from seekr_cl.tasks.examples import Example

MANY = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS | st.sampled_from(["${HOME}", "${NOT_SET_ANYWHERE}", "${", "..", "/", "\0", "\ud800", "hub:", "~nobody/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ROWS: list[dict[str, Any]] = [
    {"prompt": "one", "completion": "1", "references": ["1", "one"]},
    {"prompt": "two", "completion": "2", "references": None},
]
TALK = [{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]}]
STREAM: dict[str, Any] = {
    "model": "some/model",
    "replay": {"ratio": 0.1},
    "tasks": [
        "data/first",
        {"name": "b", "data": "b.json", "eval": "e.json", "metric": "rouge", "epochs": 2, "limit": {"train": 3}},
    ],
}
LAUGHS = "".join(f"b{n + 1}: &b{n + 1} [{', '.join([f'*b{n}'] * 9)}]\n" for n in range(12))
MERGED = "".join(f"b{n + 1}: &b{n + 1} {{<<: [{', '.join([f'*b{n}'] * 9)}]}}\n" for n in range(12))
BOMBS = [
    f"\nb0: &b0 [x, x]\n{LAUGHS}".encode(), f"\nb0: &b0 {{x: y}}\n{MERGED}".encode(), b"\nr: &r {r: *r}\n",
    b"\nr: &r [*r]\n",
]  # fmt: skip
PIECES = st.binary(max_size=12) | st.sampled_from(
    [b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!timestamp ", b"!!binary ", b"!!int ", b"!!float ",
     b"!!set ", b"!!omap ", b"- ", b"? ", b": ", b"{", b"[", b"'", b'"', b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf",
     b"2020-99-99", b"0x", b"1:99", b"0b_", b"._", b"---\n", b"%YAML 9\n", b"\\ud800", b"NaN", b"1e999", b"[" * 3000,
     b"9" * 5000, b"\xe2\x80\xa8", b",", b"99999999999999999999", *BOMBS]
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def in_ram() -> Iterator[None]:
    """Thousands of small files, and the reader's own cache for each, are too slow on a disk."""
    former = tempfile.tempdir
    tempfile.tempdir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else former
    yield
    tempfile.tempdir = former


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [found for key, child in items for found in [(*path, key), *places(child, (*path, key))]]


def changed(data: st.DataObject, document: Any) -> Any:
    """A copy of the document with any value in any place, under any key, or without that place."""
    document = json.loads(json.dumps(document))
    place = data.draw(st.sampled_from(places(document)))
    node = document
    for key in place[:-1]:
        node = node[key]
    way = data.draw(st.integers(0, 3))
    if way == 0:
        del node[place[-1]]
    elif way == 1 and isinstance(node, dict):
        node[data.draw(SCALARS)] = node.pop(place[-1])
    else:
        node[place[-1]] = data.draw(JSON)
    return document


def spliced(data: st.DataObject, content: bytes) -> bytes:
    """The bytes with up to three pieces put in or over what was there, and perhaps cut."""
    for _ in range(data.draw(st.integers(1, 3))):
        at, over = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 8))
        content = content[:at] + data.draw(PIECES) + content[at + over :]
    return content[: data.draw(st.none() | st.integers(0, len(content)))]


def read_task(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with suppress(SeekrError):
            task = Task.load(path, require_test=False)
            assert task.train
            assert all(isinstance(one, Example) for one in task.train)
            # What was let in is text: it can be hashed, shown and tokenized.
            assert task.fingerprint()


@MANY
@given(data=st.data())
def test_any_stream(data: st.DataObject) -> None:
    way = data.draw(st.integers(0, 3))
    if way == 0:
        content = data.draw(st.binary(max_size=60) | PIECES)
    elif way == 1:
        content = spliced(data, yaml.safe_dump(STREAM).encode())
    else:
        document = changed(data, STREAM)
        try:
            content = yaml.safe_dump(document, allow_unicode=way == 3).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, UnicodeError):
            content = json.dumps(document).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.yaml"
        path.write_bytes(content)
        with suppress(SeekrError):
            spec = StreamSpec.from_yaml(path)
            assert spec.tasks
            spec.load_tasks(limit=spec.settings.get("limit"))


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows).encode()


def as_jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(("name", "write"), [("t.json", as_json), ("t.jsonl", as_jsonl)])
@MANY
@given(data=st.data())
def test_any_json(name: str, write: Callable[[list[Any]], bytes], data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([ROWS, TALK]))
    way = data.draw(st.integers(0, 2))
    if way == 0:
        content = data.draw(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
    elif way == 1:
        content = spliced(data, write(rows))
    else:
        content = write(changed(data, rows))
    read_task(name, content)


@MANY
@given(data=st.data())
def test_any_csv(data: st.DataObject) -> None:
    content = b'prompt,completion,references\none,1,"[""1""]"\n"two, or",2,\n'
    if data.draw(st.integers(0, 3)) == 0:
        content = data.draw(st.binary(max_size=60))
    read_task("t.csv", spliced(data, content))


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


PARQUET = as_parquet(pa.Table.from_pylist(ROWS))
COLUMNS = st.sampled_from(
    [pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float32(), pa.bool_(), pa.null(), pa.date32(),
     pa.timestamp("us"), pa.decimal128(5, 2), pa.list_(pa.string()), pa.list_(pa.int8()),
     pa.struct([("role", pa.string())]), pa.dictionary(pa.int8(), pa.string()), pa.duration("s")]
)  # fmt: skip


@MANY
@given(data=st.data())
def test_any_parquet(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        content = spliced(data, PARQUET)
    else:
        names = st.lists(st.sampled_from(["prompt", "completion", "answer", "messages", "references", "", "\n"]))
        columns = data.draw(names.filter(bool))
        fields = [pa.field(name, data.draw(COLUMNS)) for name in columns[:3]]
        arrays = [pa.nulls(2, field.type) for field in fields]
        for place, field in enumerate(fields):
            with suppress(pa.ArrowException):
                arrays[place] = pa.array(["1", "2"]).cast(field.type)
        content = as_parquet(pa.Table.from_arrays(arrays, schema=pa.schema(fields)))
    read_task("t.parquet", content)

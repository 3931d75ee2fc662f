"""Every kind of damage is a MemoryFormatError that names the file."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_memory import current_of, manifest_of, put_right, read_all, remark, resign
from safetensors.torch import load_file, save_file

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import ReplayMemory, shard
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.memory import sample_codec as records
from seekr_cl.memory.lineage import digest
from seekr_cl.memory.sample_codec import Field
from seekr_cl.system.files import LARGEST_JSON, file_record

TEXTS, SIGNALS, IMPORTANCE = "0001-first.jsonl", "0001-first.safetensors", "importance-0002.safetensors"
FILES = [
    "manifest.json", "generations/0002.json", TEXTS, SIGNALS, "0002-second.jsonl", "0002-second.safetensors",
    IMPORTANCE,
]  # fmt: skip


def refused(folder: Path, *, names: str, at_once: bool = False) -> str:
    """Opening and reading is refused, and so are opening with ``verify`` and the command; returns the message."""
    with pytest.raises(MemoryFormatError) as caught:
        ReplayMemory.open(folder) if at_once else read_all(folder)
    message = str(caught.value)
    assert str(folder / names) in message
    assert "\n" not in message
    with pytest.raises(MemoryFormatError) as verified:
        ReplayMemory.open(folder, verify=True)
    assert str(folder / names) in str(verified.value)
    if names == "manifest.json":
        with pytest.raises(MemoryFormatError, match=r"manifest\.json"):
            upkeep.verify(folder)
    else:
        assert any(str(folder / names) in line for line in upkeep.verify(folder)[1])
    return message


def rerecord(folder: Path, name: str) -> None:
    """Makes the generation's record of one of the first task's files what the file is."""
    place = [TEXTS, SIGNALS].index(name)
    resign(folder, lambda content: content["tasks"][0]["files"].__setitem__(place, file_record(folder / name)))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit(folder: Path, name: str, place: float) -> None:
    flip(folder / name, place)
    refused(folder, names=name)


@pytest.mark.parametrize("name", [TEXTS, SIGNALS])
def test_every_flipped_bit_of_a_tasks_files(folder: Path, name: str) -> None:
    """Whatever byte it is: header, tables, signals, texts. No sample is handed out that differs from what was kept."""
    content = (folder / name).read_bytes()
    for place in range(len(content)):
        (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(MemoryFormatError) as caught:
            read_all(folder)
        assert str(folder / name) in str(caught.value)


def test_the_sound_samples_of_a_damaged_file_can_still_be_read(folder: Path) -> None:
    flip(folder / SIGNALS, 1.0)
    samples = ReplayMemory.open(folder).tasks[0].samples
    assert samples[0].prompt == "prompt 0 ∑"
    with pytest.raises(MemoryFormatError, match="sample 1 differs from its checksum"):
        samples[1]


@pytest.mark.parametrize("name", FILES)
def test_truncated_emptied_or_missing(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for kept in (len(content) - 2, len(content) // 2, 0):
        (folder / name).write_bytes(content[:kept])
        refused(folder, names=name, at_once=True)
    (folder / name).unlink()
    if name == "manifest.json":
        with pytest.raises(MemoryFormatError, match=r"holds no manifest\.json"):
            ReplayMemory.open(folder, create=True)
    else:
        assert "missing" in refused(folder, names=name, at_once=True)
        (folder / name).mkdir()
        refused(folder, names=name, at_once=True)


@pytest.mark.parametrize("name", [TEXTS, SIGNALS])
def test_a_file_cut_short_while_it_is_open(folder: Path, name: str) -> None:
    """Reading beyond the end of a mapped file would kill the process."""
    memory = ReplayMemory.open(folder)
    with open(folder / name, "r+b") as file:
        file.truncate(0)
    with pytest.raises(MemoryFormatError, match=f"{name}: was changed while it was open"):
        memory.samples[0]


def test_a_longer_file(folder: Path) -> None:
    for name in (TEXTS, SIGNALS):
        with open(folder / name, "ab") as file:
            file.write(b"\0")
        assert "bytes where the manifest says" in refused(folder, names=name, at_once=True)
        rerecord(folder, name)
        # With its hash put right too, it does not end where its samples do.
        refused(folder, names=SIGNALS, at_once=True)
        with open(folder / name, "r+b") as file:
            file.truncate((folder / name).stat().st_size - 1)
        rerecord(folder, name)
        read_all(folder, verify=True)


def test_a_file_of_an_older_generation_is_not_needed(folder: Path) -> None:
    (folder / "importance-0001.safetensors").unlink()
    (folder / "generations" / "0001.json").unlink()
    (folder / ".0003-x.jsonl.x1y2abcd").write_text("half")
    assert read_all(folder, verify=True).generation == 2
    # The command looks at every generation, and misses one.
    (line,) = upkeep.verify(folder)[1]
    assert str(folder / "generations" / "0001.json") in line


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2", b"\xff\xfe", b"[" * 100_000, b"nonsense", b"9" * 5000])
def test_a_manifest_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, names="manifest.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"seekr-memory"', "{}", '{"format": "other", "version": 1}'])
def test_json_that_is_no_manifest(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert "'format' is not 'seekr-memory'" in refused(folder, names="manifest.json")


@pytest.mark.parametrize("version", [1, 2, 99, 0, "2", None, [2], True, 3.0])
def test_another_version(folder: Path, version: Any) -> None:
    remark(folder, lambda manifest: manifest.update(version=version))
    message = refused(folder, names="manifest.json")
    assert f"format version {version!r}, this release reads 3" in message
    assert ("it is read by the sources" if version in (1, 2) and version is not True else "update seekr-cl") in message


def test_a_changed_digit(folder: Path) -> None:
    path = current_of(folder)
    content = json.loads(path.read_text("utf-8"))
    content["tasks"][0]["heads"]["0"] = [1, 2]  # plausible, and the wrong heads
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    assert "differs from the manifest's sha256" in refused(folder, names="generations/0002.json", at_once=True)
    manifest = manifest_of(folder)
    manifest["current"] = "0001.json"  # another model's
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "differs from its own sha256" in refused(folder, names="manifest.json", at_once=True)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    refused(folder, names="manifest.json", at_once=True)


def test_a_manifest_too_large_to_be_one_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    for path in (current_of(folder), folder / "manifest.json"):
        with open(path, "r+b") as file:
            file.truncate(LARGEST_JSON + 1)
        if path.name != "manifest.json":
            put_right(folder, path)

        def unread(self: Path, *args: Any, large: str = path.name, **kwargs: Any) -> str:
            assert self.name != large
            return read(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", unread)
            with pytest.raises(MemoryFormatError, match="too many for a manifest"):
                ReplayMemory.open(folder)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd", "sub/0001-first.json", "sub\\x", "..", ".", "", ".hidden", "~/x", 5,
             None, "nul\0", ["0001-first.json"], "a" * 300, "https://example.org/x", "line\nbreak", "\ud800", "å" * 51],
)  # fmt: skip
@pytest.mark.parametrize("record", ["task", "importance", "generation", "parent"])
def test_a_name_that_is_no_plain_file_name(folder: Path, name: Any, record: str) -> None:
    (folder / "sub").mkdir()
    for copy in (folder / "sub", folder.parent / "outside.json"):
        shutil.copy(folder / TEXTS, copy)

    def change(content: dict[str, Any]) -> None:
        places = {"task": content["tasks"][0]["files"][0], "importance": content["importance"]}
        (places | {"parent": content["parent"]})[record]["file"] = name

    if record == "generation":
        remark(folder, lambda manifest: manifest["generations"][1].update(file=name) or manifest.update(current=name))
    else:
        resign(folder, change)
    where = "manifest.json" if record == "generation" else "generations/0002.json"
    assert "not a plain file name" in refused(folder, names=where, at_once=True)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_link_in_place_of_a_file(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    refused(folder, names=name)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("generation",), "2"), (("generation",), True), (("generation",), None), (("tasks",), {}), (("tasks",), None),
        (("tasks",), "x"), (("tasks", 0), 5), (("tasks", 0), []), (("tasks", 0, "files"), []),
        (("tasks", 0, "files"), 3), (("tasks", 0, "files", 0), "0001-first.json"),
        (("tasks", 0, "files", 0, "bytes"), "10"), (("tasks", 0, "files", 0, "bytes"), -1),
        (("parent",), 3), (("parent",), {}), (("learnt",), None), (("learnt",), [{}]), (("method",), None),
        (("model_folder",), 3), (("versions",), []), (("written",), 5), (("tasks", 0, "files", 0, "sha256"), 7),
        (("tasks", 0, "name"), 7), (("tasks", 0, "info"), [1]), (("tasks", 0, "totals"), 3),
        (("tasks", 0, "totals", "samples"), 3), (("tasks", 0, "totals", "samples"), 1 << 70),
        (("tasks", 0, "totals", "samples"), "2"), (("tasks", 0, "totals", "samples"), 2.0),
        (("tasks", 0, "totals", "samples"), 0), (("tasks", 0, "totals", "samples"), -1),
        (("tasks", 0, "totals", "more"), 1), (("tasks", 0, "heads"), [1]),
        (("tasks", 0, "heads"), {"0": "13", "2": [0]}), (("tasks", 0, "heads"), {"zero": [1, 3], "2": [0]}),
        (("tasks", 0, "heads"), {"0": [1, 3]}), (("tasks", 0, "heads"), {"0": [1], "2": [0]}),
        (("tasks", 0, "heads"), {"0": [1, 3], "2": [0], "3": [0]}), (("importance",), 3), (("importance",), {}),
        (("importance", "layers"), None), (("importance", "layers"), [0]), (("importance", "layers"), ["0", "1", "2"]),
        (("model_sha256",), 4), (("tokenizer_sha256",), None),
    ],
)  # fmt: skip
def test_wrong_values_in_a_well_signed_manifest(folder: Path, place: tuple[Any, ...], value: Any) -> None:
    def change(manifest: Any) -> None:
        for key in place[:-1]:
            manifest = manifest[key]
        manifest[place[-1]] = value

    resign(folder, change)
    refused(folder, names="")


@pytest.mark.parametrize(
    "key", ["generation", "tasks", "importance", "model_sha256", "tokenizer_sha256", "parent", "learnt", "method"]
)
def test_a_missing_key(folder: Path, key: str) -> None:
    resign(folder, lambda content: content.pop(key) and None)
    assert key in refused(folder, names="generations/0002.json", at_once=True)


@pytest.mark.parametrize("key", ["current", "generations", "sha256"])
def test_a_missing_key_of_the_manifest(folder: Path, key: str) -> None:
    manifest = manifest_of(folder)
    del manifest[key]
    if key != "sha256":
        manifest.pop("sha256")
        manifest["sha256"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert key in refused(folder, names="manifest.json", at_once=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(current=None), lambda m: m.update(current="0009.json"), lambda m: m.update(current=2),
        lambda m: m.update(generations=[]), lambda m: m.update(generations={"0002.json": 1}),
        lambda m: m["generations"].append(dict(m["generations"][1])), lambda m: m["generations"].append(7),
        lambda m: m["generations"][1].update(bytes=-4), lambda m: m["generations"][1].update(sha256=None),
    ],
)  # fmt: skip
def test_wrong_values_in_a_well_signed_marker(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    remark(folder, lambda manifest: change(manifest) and None)
    refused(folder, names="manifest.json", at_once=True)


def forged(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any], count: int = 2) -> None:
    """Writes the first task's signals again, its tensors changed, with every checksum and hash put right."""
    memory = ReplayMemory.open(folder)
    originals = list(memory.tasks[0].samples)
    given = iter(range(count))
    tensors_of = records._tensors

    def tensors(sample: Any) -> dict[str, torch.Tensor]:
        found = tensors_of(sample)
        change(found, {"sample": next(given, None)}) if sample is originals[0] else None
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_tensors", tensors)
        written = shard.write_shard(folder / "0001-first", originals)
    resign(folder, lambda content: content["tasks"][0].update(files=written))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("logits/position"), lambda t: t.pop("logits/code"), lambda t: t.pop("attention/rows/code"),
        lambda t: t.pop("attention/query"), lambda t: t.update({"ids": torch.zeros(3, dtype=torch.int32)}),
        lambda t: t.update({"logits/position": torch.tensor([4, 5, 9])}),
        lambda t: t.update({"logits/position": torch.tensor([-1, 5, 6])}),
        lambda t: t.update({"logits/token": torch.zeros(3, 3)}),
        lambda t: t.update({"logits/tail": torch.zeros(2)}),
        lambda t: t.update({"logits/offset": torch.zeros(2)}),
        lambda t: t.update({"logits/other": torch.zeros(2)}),
        lambda t: t.update({"attention/query": torch.tensor([0, 2, 5])}),
        lambda t: t.update({"attention/rows/code": torch.zeros(2, 4, 5)}),
        lambda t: t.update({"attention/rows/key": torch.full((3, 4, 5), 9)}),
        lambda t: t.update({"attention/rows/key": torch.full((3, 4, 5), -1)}),
        lambda t: t.update({"attention/rows/key": torch.zeros(3, 4, 5)}),
        lambda t: t.update({"attention/rows/tail": torch.zeros(3, 5)}),
        lambda t: t.update({"attention/rows/other": torch.zeros(3, 5)}),
        lambda t: t.update({"stray": torch.zeros(2)}),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """From a stranger who knows the format: every checksum and hash is right, and the sample is still refused."""
    forged(folder, lambda tensors, _: change(tensors))
    refused(folder, names=SIGNALS)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("ids"), lambda t: t.update({"ids": torch.zeros(9)}),
        lambda t: t.update({"ids": torch.zeros(9, 2, dtype=torch.int32)}),
    ],
)  # fmt: skip
def test_a_kind_without_token_ids(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    forged(folder, lambda tensors, _: change(tensors))
    refused(folder, names=SIGNALS, at_once=True)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the importance file and puts every hash right again."""
    tensors = load_file(folder / IMPORTANCE)
    change(tensors)
    save_file(tensors, folder / IMPORTANCE)
    resign(folder, lambda content: content["importance"].update(file_record(folder / IMPORTANCE)))


def reheaded(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the header of the first task's signals and puts the file's hash right again."""
    path = folder / SIGNALS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    rerecord(folder, SIGNALS)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["samples"].update(shape=[1 << 60], data_offsets=[0, 1 << 60]), lambda h: h.pop("index"),
        lambda h: h["index"].update(shape=[1 << 40, 1 << 20]), lambda h: h["place"].update(dtype="F64"),
        lambda h: h["__metadata__"].update(kinds=json.dumps([[["ids", "I32", 1], ["x", "F32", 1 << 30]]])),
        lambda h: h["__metadata__"].update(kinds="[[["), lambda h: h["__metadata__"].update(kinds="7"),
        lambda h: h["__metadata__"].update(kinds=None), lambda h: h.pop("__metadata__"), lambda h: b"[" * 100_000,
        lambda h: b"null", lambda h: b"\xff", lambda h: b"", lambda h: h.update(more={"dtype": "U8"}),
        lambda h: h["__metadata__"].update(kinds=json.dumps([[["ids", "I32", 1]] * 2])),
    ],
)  # fmt: skip
def test_a_header_that_claims_what_is_not_there(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    reheaded(folder, change)
    refused(folder, names=SIGNALS, at_once=True)


def test_a_header_of_absurd_length_is_not_read(folder: Path) -> None:
    for length in (1 << 63, 1 << 21, 5000):
        path = folder / SIGNALS
        content = path.read_bytes()
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        rerecord(folder, SIGNALS)
        refused(folder, names=SIGNALS, at_once=True)


def test_shapes_that_claim_more_than_the_file_allocate_nothing() -> None:
    huge = (Field("ids", "I32", 1), Field("logits/code", "F32", 2))
    with pytest.raises(ValueError, match="bytes do not have the shapes"):
        records.decode(records.Record(huge, [9, 1 << 31, 1 << 31], bytes(36)), ("", ""), 0)


@pytest.mark.parametrize(
    "change", [lambda t: t.pop("product"), lambda t: t.update(sensitivity=torch.zeros(2, 4)), lambda t: t.clear()]
)
def test_importance_that_does_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    rewrite(folder, change)
    refused(folder, names=IMPORTANCE, at_once=True)


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"[]", b"5", b"null", b"", b"nonsense", b"\xff", b"[" * 100_000, b'{"prompt": "p", "completion": "c"}',
        b'{"id": "x", "prompt": 1, "completion": "c"}', b'{"id": "x", "prompt": "p", "completion": "c"}',
    ],
)  # fmt: skip
def test_texts_that_do_not_fit(folder: Path, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = list(ReplayMemory.open(folder).tasks[0].samples)
    right = shard.text_line
    monkeypatch.setattr(shard, "text_line", lambda sample: line + b"\n" if sample is originals[1] else right(sample))
    written = shard.write_shard(folder / "0001-first", originals)
    resign(folder, lambda content: content["tasks"][0].update(files=written))
    refused(folder, names=TEXTS)


def test_counts_that_differ_from_the_samples(folder: Path) -> None:
    """Training trusts the counts; who verifies does not."""
    resign(folder, lambda content: content["tasks"][0]["totals"].update(logits=1))
    with pytest.raises(MemoryFormatError, match=r"0002\.json: counts of task 'first' differ"):
        ReplayMemory.open(folder, verify=True)
    assert len(upkeep.verify(folder)[1]) == 1


def test_a_folder_that_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("photos", "file"):
        for create in (False, True):
            with pytest.raises(
                MemoryFormatError, match=f"{name}: holds no manifest.json, so it is not a replay memory"
            ):
                ReplayMemory.open(tmp_path / name, create=create)
    for name in ("empty", "absent"):
        with pytest.raises(MemoryFormatError, match="name an existing memory or a new folder"):
            ReplayMemory.open(tmp_path / name)
        assert ReplayMemory.open(tmp_path / name, create=True).generation == 0
    assert not (tmp_path / "absent").exists()
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"

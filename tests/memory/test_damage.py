"""Every kind of damage is a MemoryFormatError that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_memory import resign
from safetensors.torch import load_file, save_file

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.files import file_record
from seekr_cl.memory.store import _digest

FILES = [
    "manifest.json", "0001-first.json", "0001-first.safetensors", "0002-second.json", "0002-second.safetensors",
    "importance-0002.safetensors",
]  # fmt: skip


def refused(folder: Path, *, names: str) -> str:
    with pytest.raises(MemoryFormatError) as caught:
        ReplayMemory.open(folder)
    message = str(caught.value)
    assert str(folder / names) in message
    assert "\n" not in message
    return message


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit(folder: Path, name: str, place: float) -> None:
    flip(folder / name, place)
    refused(folder, names=name)


@pytest.mark.parametrize("name", FILES)
def test_truncated_emptied_or_missing(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for kept in (len(content) - 2, len(content) // 2, 0):
        (folder / name).write_bytes(content[:kept])
        refused(folder, names=name)
    (folder / name).unlink()
    if name == "manifest.json":
        with pytest.raises(MemoryFormatError, match=r"holds no manifest\.json"):
            ReplayMemory.open(folder, create=True)
    else:
        assert "missing" in refused(folder, names=name)
        (folder / name).mkdir()
        refused(folder, names=name)


def test_a_longer_file(folder: Path) -> None:
    with open(folder / FILES[2], "ab") as file:
        file.write(b"\0")
    assert "bytes where the manifest says" in refused(folder, names=FILES[2])


def test_a_file_of_an_older_generation_is_not_needed(folder: Path) -> None:
    (folder / "importance-0001.safetensors").unlink()
    (folder / ".leftover.json.x1y2").write_text("half")
    assert ReplayMemory.open(folder).generation == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2", b"\xff\xfe", b"[" * 100_000, b"nonsense", b"9" * 5000])
def test_a_manifest_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, names="manifest.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"seekr-memory"', "{}", '{"format": "other", "version": 1}'])
def test_json_that_is_no_manifest(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert "'format' is not 'seekr-memory'" in refused(folder, names="manifest.json")


@pytest.mark.parametrize("version", [1, 99, 0, "2", None, [2]])
def test_another_version(folder: Path, version: Any) -> None:
    resign(folder, lambda manifest: manifest.update(version=version))
    assert f"format version {version!r}, this release reads 2; update seekr-cl" in refused(
        folder, names="manifest.json"
    )


def test_a_changed_digit_in_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["tasks"][0]["heads"]["0"] = [1, 2]  # plausible, and the wrong heads
    path.write_text(json.dumps(manifest))
    assert "differs from its own sha256" in refused(folder, names="manifest.json")
    path.unlink()
    path.mkdir()
    refused(folder, names="manifest.json")


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd", "sub/0001-first.json", "sub\\x", "..", ".", "", ".hidden", "~/x", 5,
             None, "nul\0", ["0001-first.json"], "a" * 300, "https://example.org/x", "line\nbreak", "\ud800"],
)  # fmt: skip
@pytest.mark.parametrize("record", ["task", "importance"])
def test_a_name_that_is_no_plain_file_name(folder: Path, name: Any, record: str) -> None:
    (folder / "sub").mkdir()
    for copy in (folder / "sub", folder.parent / "outside.json"):
        shutil.copy(folder / "0001-first.json", copy)

    def change(manifest: dict[str, Any]) -> None:
        place = manifest["tasks"][0]["files"][0] if record == "task" else manifest["importance"]
        place["file"] = name

    resign(folder, change)
    assert "not a plain file name" in refused(folder, names="manifest.json")


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
        (("tasks", 0, "files", 0, "bytes"), "10"), (("tasks", 0, "files", 0, "sha256"), 7),
        (("tasks", 0, "name"), 7), (("tasks", 0, "info"), [1]), (("tasks", 0, "samples"), 3),
        (("tasks", 0, "samples"), "2"), (("tasks", 0, "samples"), 2.0), (("tasks", 0, "heads"), [1]),
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


@pytest.mark.parametrize("key", ["generation", "tasks", "importance", "model_sha256", "tokenizer_sha256", "sha256"])
def test_a_missing_key(folder: Path, key: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest[key]
    path.write_text(json.dumps(manifest))
    refused(folder, names="manifest.json")
    if key != "sha256":
        manifest.pop("sha256")
        path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
        assert key in refused(folder, names="manifest.json")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = FILES[2]) -> None:
    """Changes a tensor file and puts every hash right again."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)

    def put_right(manifest: dict[str, Any]) -> None:
        if name.startswith("importance"):
            manifest["importance"] |= file_record(folder / name)
        else:
            manifest["tasks"][0]["files"][1] = file_record(folder / name)

    resign(folder, put_right)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("000000/ids"), lambda t: t.pop("000001/completion_start"),
        lambda t: t.pop("000000/logits/position"), lambda t: t.pop("000000/logits/code"),
        lambda t: t.pop("000000/attention/rows/code"), lambda t: t.pop("000000/attention/query"),
        lambda t: t.update({"000002/ids": torch.zeros(3)}), lambda t: t.update({"000000/ids": torch.zeros(3)}),
        lambda t: t.update({"000000/ids": torch.zeros(9, 2)}), lambda t: t.update({"-1/ids": torch.zeros(9)}),
        lambda t: t.update({"000000/logits/position": torch.tensor([4, 5, 9])}),
        lambda t: t.update({"000000/logits/position": torch.tensor([-1, 5, 6])}),
        lambda t: t.update({"000000/logits/token": torch.zeros(3, 3)}),
        lambda t: t.update({"000000/attention/query": torch.tensor([0, 2, 5])}),
        lambda t: t.update({"000000/attention/rows/code": torch.zeros(2, 4, 5)}),
        lambda t: t.update({"000000/attention/rows/key": torch.full((3, 4, 5), 9)}),
        lambda t: t.update({"000000/attention/rows/key": torch.full((3, 4, 5), -1)}),
        lambda t: t.update({"000000/attention/rows/key": torch.zeros(3, 4, 5)}),
        lambda t: t.update({"000000/attention/rows/tail": torch.zeros(3, 5)}),
        lambda t: t.update({"000000/attention/rows/other": torch.zeros(3, 5)}),
        lambda t: t.update({"000000/completion_start": torch.tensor(10)}),
        lambda t: t.update({"000000/completion_start": torch.zeros(2)}),
        lambda t: t.update({"stray": torch.zeros(2)}),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    rewrite(folder, change)
    refused(folder, names=FILES[2])


@pytest.mark.parametrize(
    "change", [lambda t: t.pop("product"), lambda t: t.update(sensitivity=torch.zeros(2, 4)), lambda t: t.clear()]
)
def test_importance_that_does_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    rewrite(folder, change, FILES[5])
    refused(folder, names=FILES[5])


@pytest.mark.parametrize("texts", [{}, [], [{"prompt": "p"}] * 2, [{"prompt": 1, "completion": "c"}] * 2, [1, 2], 5])
def test_texts_that_do_not_fit(folder: Path, texts: Any) -> None:
    (folder / FILES[1]).write_text(json.dumps(texts))
    resign(folder, lambda m: m["tasks"][0]["files"].__setitem__(0, file_record(folder / FILES[1])))
    refused(folder, names=FILES[2])


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

"""Checkpoints on disk: whole or not at all, the newest valid one wins, whatever has been done to the files."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seekr_cl.training.checkpoint import Checkpoints, CheckpointWarning


def save(saves: Checkpoints, number: int) -> None:
    parts = {"weights": {"w": torch.full((3,), float(number))}, "empty": {}}
    saves.save({"number": number, "nan": float("inf")}, parts, {"trainer_state.json": "{}"})


def names(saves: Checkpoints) -> list[str]:
    return sorted(path.name for path in saves.place.iterdir())


def test_the_newest_is_read_and_one_before_it_kept(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path / "place")
    assert saves.newest() is None
    for number in range(1, 5):
        save(saves, number)
        found = saves.newest()
        assert found is not None
        assert found.state == {"number": number, "nan": float("inf")}
        assert found.tensors("weights")["w"].tolist() == [number] * 3
        assert found.tensors("empty") == {} == found.tensors("absent")
    assert names(saves) == ["000003", "000004"]
    saves.clear()
    assert not (tmp_path / "place").exists()


def test_nothing_is_removed_before_the_next_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves, seen = Checkpoints(tmp_path), []
    save(saves, 1)
    save(saves, 2)
    remove = Path.unlink

    def watched(path: Path, **kwargs: Any) -> None:
        if path.parent.parent == tmp_path and not path.parent.name.startswith("."):
            seen.append((path.parent.name, names(saves)))
        remove(path, **kwargs)

    monkeypatch.setattr(Path, "unlink", watched)
    save(saves, 3)
    assert seen[0] == ("000001", ["000001", "000002", "000003"])
    assert {removed for removed, _ in seen} == {"000001"}
    assert names(saves) == ["000002", "000003"]


def test_clearing_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path)
    save(saves, 1)
    (tmp_path / "notes.txt").write_text("mine")
    saves.clear()
    assert names(saves) == ["notes.txt"]


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "weights.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "linked"])
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    saves = Checkpoints(tmp_path)
    save(saves, 1)
    save(saves, 2)
    path = tmp_path / "000002" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "linked" and file != "manifest.json":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(CheckpointWarning, match="000002: this checkpoint is damaged"):
        found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found.state["number"] == 1
    save(saves, 3)  # the damaged number is not taken again
    assert {"000002", "000003"} <= set(names(saves))
    assert "000001" not in names(saves)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "file": st.sampled_from(["state.json", "../000001/state.json", "/etc/passwd", "", "manifest.json"]) | JSON,
        "bytes": JSON,
        "sha256": JSON,
    },
)


def signed(manifest: Any) -> bytes:
    """A stranger can compute a hash too."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": digest} if isinstance(manifest, dict) else manifest).encode()


@pytest.mark.slow
@settings(max_examples=1200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzz(tmp_path: Path, data: st.DataObject) -> None:
    """Only the older checkpoint, none, or the newest itself comes out; never another exception."""
    if not (tmp_path / "whole").exists():
        saves = Checkpoints(tmp_path / "whole")
        save(saves, 1)
        save(saves, 2)
    place = tmp_path / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(tmp_path / "whole", place)
    target = place / "000002" / data.draw(st.sampled_from(sorted(os.listdir(place / "000002"))))
    content = target.read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "cut", "flip", "json", "manifest"]))
    if kind == "bytes":
        changed = data.draw(st.binary(max_size=60))
    elif kind == "cut":
        changed = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "flip":
        place_of = data.draw(st.integers(0, len(content) - 1))
        mask = data.draw(st.integers(1, 255))
        changed = content[:place_of] + bytes([content[place_of] ^ mask]) + content[place_of + 1 :]
    elif kind == "json":
        changed = json.dumps(data.draw(JSON)).encode()
    else:
        target = place / "000002" / "manifest.json"
        head = {"format": "seekr-checkpoint", "version": 1}
        changed = signed(head | {"files": data.draw(st.lists(RECORD | JSON, max_size=3) | JSON)})
    target.write_bytes(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Checkpoints(place).newest()
    assert found is not None
    assert found.state["number"] == (2 if changed == content and kind != "manifest" else 1) or kind == "manifest"

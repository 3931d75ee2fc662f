"""A hand-made memory of two tasks, small enough to be damaged a hundred times."""

import json
from pathlib import Path
from typing import Any

import torch

from seekr_cl.attention.stored import StoredDense, StoredTopK
from seekr_cl.heads import HeadImportance
from seekr_cl.memory import AttentionSignal, LogitSignal, MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.memory.lineage import digest
from seekr_cl.system.files import file_record

TOKENS, VOCABULARY = 9, 11
HEADS = {0: [1, 3], 2: [0]}
INFO = {"examples": 40, "fingerprint": "f00d"}


def make_sample(number: int, dense: bool = False, dtype: str = "float16") -> ReplaySample:
    """Nine tokens, three answer positions, four queries; numbers that no half precision holds exactly."""
    draw = torch.Generator().manual_seed(number)
    position_A = torch.tensor([4, 5, 6])
    logits_AV = torch.randn((3, VOCABULARY), generator=draw)
    query_R = torch.tensor([0, 2, 5, 8])
    rows_MRL = torch.rand((sum(map(len, HEADS.values())), 4, TOKENS), generator=draw).softmax(-1)
    rows = StoredDense.encode(rows_MRL, dtype) if dense else StoredTopK.encode(rows_MRL, 5, dtype)
    return ReplaySample(
        f"prompt {number} ∑", f"completion {number}\n", torch.randint(VOCABULARY, (TOKENS,), generator=draw), 5,
        {"logits": LogitSignal.encode(position_A, logits_AV, None if dense else 4, dtype),
         "attention": AttentionSignal(query_R, rows)},
    )  # fmt: skip


def make_task(name: str, first: int = 0, count: int = 2, dtype: str = "float16") -> MemoryTask:
    samples = [make_sample(first + i, i % 2 == 1, dtype) for i in range(count)]
    return MemoryTask(name, samples, dict(HEADS), dict(INFO))


def make_importance(scale: float = 1.0) -> HeadImportance:
    table_NH = scale * torch.arange(12.0).reshape(3, 4)
    return HeadImportance((0, 1, 2), table_NH, table_NH + 1, table_NH + 2)


def commit(memory: ReplayMemory, *tasks: MemoryTask, model: str = "m", **more: Any) -> None:
    """One more generation."""
    given = {"importance": make_importance(memory.generation + 1), "tokenizer_sha256": "t", "method": {"name": "x"}}
    memory.commit(list(tasks), model_sha256=model, **(given | more))


def manifest_of(folder: Path) -> dict[str, Any]:
    """The commit marker."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def current_of(folder: Path) -> Path:
    """The file of the current generation."""
    return folder / "generations" / manifest_of(folder)["current"]


def remark(folder: Path, change: Any) -> None:
    """Changes the manifest as somebody would who knows the format: with its own hash put right again."""
    manifest = manifest_of(folder)
    manifest.pop("sha256")
    changed = change(manifest)
    manifest = manifest if changed is None else changed
    if isinstance(manifest, dict):
        manifest["sha256"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def resign(folder: Path, change: Any) -> None:
    """Changes the current generation likewise, and the manifest's record of it."""
    path = current_of(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")
    put_right(folder, path)


def put_right(folder: Path, path: Path) -> None:
    """Makes the manifest's record of a generation what its file is."""

    def change(manifest: dict[str, Any]) -> None:
        (record,) = (record for record in manifest["generations"] if record["file"] == path.name)
        record |= file_record(path)

    remark(folder, change)


def read_all(folder: Path, **given: Any) -> ReplayMemory:
    """Opens a memory and reads every sample with its texts."""
    memory = ReplayMemory.open(folder, **given)
    for _, sample in memory.samples:
        assert isinstance(sample.prompt, str)
    return memory

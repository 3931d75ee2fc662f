"""A memory whose hashes are all right and which says what cannot be, or what is not about the model."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from made_memory import commit, current_of, make_task, remark, resign

from seekr_cl.attention.stored import StoredTopK
from seekr_cl.cli.main import main
from seekr_cl.errors import MemoryFormatError, SeekrError
from seekr_cl.heads import HeadImportance
from seekr_cl.memory import (
    AttentionSignal,
    LogitSignal,
    MemoryTask,
    ReplayMemory,
    ReplaySample,
    archive,
)
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.memory import sample_codec as records
from seekr_cl.memory.claims import Limits, check_fits
from seekr_cl.memory.lineage import Lineage
from seekr_cl.memory.sample_codec import Field

LIMITS = Limits(tokens=50, outputs=60, layers=4, heads=8, length=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    memory = ReplayMemory(tmp_path / "memory")
    commit(memory, make_task("first"))
    commit(memory, make_task("second", 2))
    return memory.path


def first_totals(document: Any, **numbers: int) -> None:
    document["tasks"][0]["totals"].update(numbers)


CLAIMS: list[Callable[[Any], Any]] = [
    lambda document: document["tasks"][0]["files"][1].update(bytes=10**400),
    lambda document: document["tasks"][0]["files"][1].update(bytes=1 << 62),
    lambda document: document["importance"].update(bytes=1 << 60),
    lambda document: first_totals(document, samples=10**18),
    lambda document: first_totals(document, tokens=10**9),
    lambda document: first_totals(document, queries=10**9),
    lambda document: first_totals(document, positions=10**9),
    lambda document: first_totals(document, logits=3),
    lambda document: first_totals(document, strange=1),
    lambda document: document.update(strange=1),
    lambda document: document["tasks"][0].update(strange=1),
    lambda document: document["tasks"][0]["files"][0].update(strange=1),
    lambda document: document["learnt"][0].update(strange=1),
    lambda document: document["importance"].update(layers=list(range(10**5))),
    lambda document: document["importance"].update(layers=[-1, 2]),
    lambda document: document["importance"].update(layers=[0, 0]),
    lambda document: document["tasks"][0].update(heads={"0": [-24]}),
    lambda document: document["tasks"][0].update(heads={"0": [1, 1]}),
    lambda document: document["tasks"][0].update(heads={"-1": [1]}),
    lambda document: document["tasks"][0].update(heads={str(10**9): [1]}),
    lambda document: document["tasks"][0].update(heads={"0": [10**9]}),
]


@pytest.mark.parametrize("change", CLAIMS, ids=[str(number) for number in range(len(CLAIMS))])
def test_claims_that_cannot_be(folder: Path, change: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    resign(folder, change)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for words in (["log"], ["show"], ["gc"], ["rollback", "--to", "first"], ["forget", "--task", "first"]):
        assert main(["memory", words[0], str(folder), *words[1:]]) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert str(folder) in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_manifest_with_a_huge_number(folder: Path) -> None:
    remark(folder, lambda document: document["generations"][0].update(bytes=1 << 60))
    with pytest.raises(MemoryFormatError, match=r"manifest\.json"):
        ReplayMemory.open(folder)


@pytest.mark.parametrize("kind", ["device", "pipe", "hole", "brackets", "deep"])
@pytest.mark.parametrize("inner", [True, False])
def test_a_manifest_that_is_no_file(folder: Path, kind: str, inner: bool) -> None:
    path = current_of(folder) if inner else folder / "manifest.json"
    path.unlink()
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hole":
        path.touch()
        os.truncate(path, 1 << 39)
    elif kind == "deep":
        path.write_text("[" * 5_000_000)
    else:
        path.write_text("[" + "[]," * 4_000_000 + "[]]")
    with pytest.raises(MemoryFormatError, match=path.name):
        ReplayMemory.open(folder)


@pytest.mark.parametrize("kind", ["pipe", "hole", "device"])
def test_an_archive_that_is_no_file(folder: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "memory.tar"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        archive.export(folder, path)
        os.truncate(path, 1 << 39)
    with pytest.raises(SeekrError, match=r"memory\.tar: cannot be read"):
        archive.import_(path, tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))


def sample(**changes: Any) -> ReplaySample:
    signal = LogitSignal(torch.tensor([3]), torch.zeros(1, 2), torch.tensor([[1, 2]]), torch.zeros(1))
    rows = StoredTopK(torch.ones(2, 1, 2), torch.zeros(2, 1, 2, dtype=torch.int32), torch.zeros(2, 1))
    signals = {"logits": signal, "attention": AttentionSignal(torch.tensor([1]), rows)}
    signals |= {kind: changes.pop(kind) for kind in signals if kind in changes}
    values: dict[str, Any] = {"ids_L": torch.tensor([1, 2, 3, 4]), "completion_start": 2, "signals": signals}
    return ReplaySample("p", "c", **values | changes)


def logits(**changes: Any) -> LogitSignal:
    values: dict[str, Any] = {
        "position_A": torch.tensor([3]), "code_AK": torch.zeros(1, 2), "token_AK": torch.tensor([[1, 2]]),
        "tail_A": torch.zeros(1),
    }  # fmt: skip
    return LogitSignal(**values | changes)


@pytest.mark.parametrize(
    ("task", "layers", "what"),
    [
        (MemoryTask("t", [sample(ids_L=torch.tensor([1, 50, 3, 4]))]), (), "token 50, but the model has 50 tokens"),
        (MemoryTask("t", [sample(ids_L=torch.ones(17).long())]), (), "17 tokens, but the model has a context of 16"),
        (MemoryTask("t", [sample(ids_L=torch.ones(0).long())]), (), "no tokens"),
        (MemoryTask("t", [sample(logits=logits(token_AK=torch.tensor([[1, 60]])))]), (), "logits of token 60"),
        (
            MemoryTask("t", [sample(logits=logits(code_AK=torch.zeros(1, 61), token_AK=None, tail_A=None))]), (),
            "logits of 61 tokens",
        ),
        (MemoryTask("t", [sample(logits=logits(position_A=torch.ones(0), code_AK=torch.zeros(0, 9)))]), (), "no posi"),
        (MemoryTask("t", [sample(attention=AttentionSignal(torch.ones(0), None))]), (), "no queries"),
        (MemoryTask("t", [], {4: [1]}), (), "heads of layer 4, but the model has 4 layers"),
        (MemoryTask("t", [], {1: [8]}), (), "head 8 of layer 1, but the model has 8 heads"),
        (MemoryTask("t", []), (0, 4), "head importance of layer 4"),
    ],
)  # fmt: skip
def test_what_the_model_has_not(task: MemoryTask, layers: tuple[int, ...], what: str) -> None:
    with pytest.raises(MemoryFormatError, match=f"memory: .*{what}"):
        check_fits([task], layers, LIMITS, "memory")


def test_what_the_model_has() -> None:
    fits = sample(ids_L=torch.full((16,), 49), logits=logits(token_AK=torch.tensor([[0, 59]])))
    check_fits([MemoryTask("t", [fits], {0: [0, 7], 3: [1]})], (0, 3), LIMITS, "memory")


@pytest.mark.parametrize(
    "change",
    [
        {"ids_L": torch.tensor([1, -1, 3, 4])},
        {"logits": logits(token_AK=torch.tensor([[1, -2]]))},
        {"logits": logits(tail_A=torch.tensor([float("nan")]))},
        {"logits": logits(tail_A=torch.tensor([float("inf")]))},
    ],
)
def test_samples_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    memory = ReplayMemory(tmp_path / "memory")
    importance = HeadImportance.zeros({0: 4})
    memory.commit(
        [MemoryTask("t", [sample(**change)], {0: [0, 1]})], importance=importance, model_sha256="m",
        tokenizer_sha256="t", method={},
    )  # fmt: skip
    with pytest.raises(MemoryFormatError, match="sample 0 is not one"):
        ReplayMemory.open(tmp_path / "memory", verify=True)


@pytest.mark.parametrize("width", [300_000_000, (1 << 32) - 1])
def test_nothing_of_a_great_width(width: int) -> None:
    kind = (Field("ids", "I32", 1), Field("logits/position", "I32", 1), Field("logits/code", "F32", 2))
    with pytest.raises(ValueError, match="of shape"):
        records.decode(records.Record(kind, [1, 0, 0, width], bytes(4)), lambda: ("", ""), 0)


@pytest.mark.parametrize("reader", ["open", "verify", "log", "export"])
def test_a_reader_sees_one_generation_whole(
    folder: Path, tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a reader's look at the manifest and at the files another process forgets a task."""
    read, others = Lineage.read.__func__, [lambda: upkeep.forget(folder, task="first")]  # type: ignore[attr-defined]

    def late(cls: Any, place: Path) -> Any:
        found = read(cls, place)
        if others and place == folder:
            others.pop()()
        return found

    monkeypatch.setattr(Lineage, "read", classmethod(late))
    if reader == "open":
        assert [len(task.samples) for task in ReplayMemory.open(folder).tasks] == [0, 2]
    elif reader == "verify":
        assert upkeep.verify(folder)[1] == []
    elif reader == "log":
        assert main(["memory", "log", str(folder)]) == 0
    else:
        archive.export(folder, tmp_path / "memory.tar", every=True)
        there = archive.import_(tmp_path / "memory.tar", tmp_path / "new")
        assert [len(task.samples) for task in there.tasks] == [0, 2]
    assert not others


def test_what_is_broken_stays_so(folder: Path) -> None:
    (folder / "0001-first.jsonl").unlink()
    with pytest.raises(MemoryFormatError, match=r"0001-first\.jsonl: missing"):
        ReplayMemory.open(folder)
    assert len(upkeep.verify(folder)[1]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_memory_that_may_not_be_read(folder: Path) -> None:
    for above in (folder.parent, *folder.parents[1:-2]):
        above.chmod(0o755)
    for place in (folder / "generations", folder, folder / "manifest.json"):
        mode = place.stat().st_mode
        place.chmod(0)
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                for read in (ReplayMemory.open, lambda path: upkeep.opened(path).all()):
                    with suppress(SeekrError):
                        read(folder)
                        os._exit(1)
            except BaseException:
                os._exit(2)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, place
        place.chmod(mode)

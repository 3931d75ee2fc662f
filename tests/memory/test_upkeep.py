"""What is done to a memory beside learning: log, rollback, forget, gc, and crashes in the middle of each."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_memory import commit, current_of, make_sample, make_task, manifest_of, read_all

from seekr_cl.errors import ConfigError, MemoryFormatError, OutputError
from seekr_cl.memory import MemoryTask, ReplayMemory
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.memory.lineage import Lineage
from seekr_cl.system.files import write_tensors


class Crash(BaseException):
    """Nothing in the library catches it."""


def names(folder: Path) -> list[str]:
    return [task.name for task in read_all(folder, verify=True).tasks]


def everything(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def prompts(folder: Path) -> list[list[str]]:
    return [[sample.prompt for sample in task.samples] for task in ReplayMemory.open(folder).tasks]


def test_generations_name_their_parent_and_what_they_came_from(folder: Path) -> None:
    first, second = Lineage.read(folder).all()
    assert (first.label, second.label) == ("0001", "0002")
    assert first.content["parent"] is None
    assert second.content["parent"] == {"file": "0001.json", "sha256": first.record["sha256"]}
    assert first.content["learnt"] == [{"name": "first", "data_sha256": "f00d"}]
    assert second.content["model_sha256"] == "m2"
    assert {"seekr-cl", "torch", "transformers", "python"} <= second.content["versions"].keys()
    # Files are shared, not copied.
    assert second.tasks[0] == first.tasks[0]
    assert upkeep.verify(folder)[1] == []


def test_a_parent_that_is_another_is_found(folder: Path) -> None:
    from made_memory import resign

    resign(folder, lambda content: content["parent"].update(sha256="0" * 64))
    (line,) = upkeep.verify(folder)[1]
    assert "its parent 0001.json is not the one it was made from" in line


def test_back_and_on_another_way(folder: Path) -> None:
    former = everything(folder)
    one = upkeep.rollback(folder, "first")
    assert (one.label, one.content["model_sha256"]) == ("0001", "m1")
    memory = ReplayMemory.open(folder)
    assert (memory.generation, memory.model_sha256, names(folder)) == (1, "m1", ["first"])
    assert torch.equal(memory.importance.sensitivity_NH, torch.arange(12.0).reshape(3, 4))
    memory.check_belongs("m1", "t")
    with pytest.raises(MemoryFormatError, match=r"generation 1 belongs to .*'first'.*generation 0002, after task 'sec"):
        memory.check_belongs("m2", "t")
    commit(memory, make_task("third", 9), model="m3")
    assert names(folder) == ["first", "third"]
    lineage = Lineage.read(folder)
    assert [one.label for one in lineage.line()] == ["0001", "0002-2"]
    assert [one.label for one in lineage.all()] == ["0001", "0002", "0002-2"]
    # The other way is still there: files of the same number did not overwrite each other.
    assert upkeep.rollback(folder, "second").label == "0002"
    assert names(folder) == ["first", "second"]
    kept = everything(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json" and "third" not in path.name:
            assert path.read_bytes() in kept
    assert len(kept) > len(former)
    upkeep.rollback(folder, "0002-2")
    dropped, freed = upkeep.collect(folder)
    assert dropped == ["0002"]
    assert freed > 0
    assert names(folder) == ["first", "third"]
    assert not list(folder.glob("*second*"))


def test_rollback_to_what_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to: no kept generation was written after 'frist'.*'first'"):
        upkeep.rollback(folder, "frist")
    (folder / "0001-first.safetensors").unlink()
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(MemoryFormatError, match=r"0001-first\.safetensors: missing"):
        upkeep.rollback(folder, "first")
    assert (folder / "manifest.json").read_bytes() == before


def test_a_task_learnt_on_two_lines_is_not_guessed(folder: Path) -> None:
    for model in ("a", "b"):
        upkeep.rollback(folder, "first")
        commit(ReplayMemory.open(folder), make_task("again", 7), model=model)
    upkeep.rollback(folder, "first")
    with pytest.raises(ConfigError, match=r"'again' was learned in 0002-2, 0002-3; name one"):
        upkeep.rollback(folder, "again")


def test_forgetting_a_task(folder: Path) -> None:
    commit(ReplayMemory.open(folder), make_task("third", 4), model="m3", keep={0: [1]})
    done = upkeep.forget(folder, task="first")
    assert (done.samples, done.generations, done.importance) == (2, ["0001", "0002", "0003"], True)
    assert done.freed > 0
    content = everything(folder)
    for number in (0, 1):
        assert f"prompt {number}".encode() not in content
        assert make_sample(number).ids_L.to(torch.int32).numpy().tobytes() not in content
    assert not list(folder.glob("0001*"))
    for label, kept in (("0003-2", [[], [2, 3], [4, 5]]), ("0002-2", [[], [2, 3]]), ("0001-2", [[]])):
        upkeep.rollback(folder, label)
        assert prompts(folder) == [[f"prompt {n} ∑" for n in numbers] for numbers in kept]
    lineage = Lineage.read(folder)
    assert [one.label for one in lineage.line()] == ["0001-2"]
    upkeep.rollback(folder, "third")
    assert [one.label for one in Lineage.read(folder).line()] == ["0001-2", "0002-2", "0003-2"]
    assert upkeep.verify(folder)[1] == []
    assert ReplayMemory.open(folder).tasks[0].heads == {}
    # The hash of its data would tell who has the data that it was this.
    assert "fingerprint" not in ReplayMemory.open(folder).tasks[0].info
    assert "forgotten" in lineage.all()[0].content["learnt"][0]
    with pytest.raises(ConfigError, match="no kept generation holds anything of task 'first'"):
        upkeep.forget(folder, task="first")
    # What is learned next takes the next place.
    commit(ReplayMemory.open(folder), make_task("fourth", 6), model="m4")
    assert names(folder) == ["first", "second", "third", "fourth"]


def test_forgetting_one_sample_and_every_copy_of_it(folder: Path) -> None:
    memory = ReplayMemory.open(folder)
    copy = make_sample(1, dense=False)
    commit(memory, MemoryTask("third", [make_sample(5), copy], {0: [1, 3], 2: [0]}), model="m3")
    commit(memory, model="m3", keep={0: [1]})
    wanted = memory.tasks[0].samples[0].sample_id
    assert wanted == copy.sample_id == make_sample(1).sample_id != make_sample(5).sample_id
    done = upkeep.forget(folder, sample=wanted)
    assert done.generations == ["0001", "0002", "0003", "0004"]
    assert done.samples == 2
    assert "prompt 1 ∑".encode() not in everything(folder)
    assert wanted.encode() not in everything(folder)
    assert prompts(folder) == [[], ["prompt 2 ∑", "prompt 3 ∑"], ["prompt 5 ∑"]]
    assert upkeep.verify(folder)[1] == []
    upkeep.rollback(folder, "first")
    assert prompts(folder) == [["prompt 0 ∑"]]
    with pytest.raises(ConfigError, match="no kept generation holds anything of sample"):
        upkeep.forget(folder, sample=wanted)


def test_a_damaged_file_is_no_reason_to_keep_a_task(folder: Path) -> None:
    path = folder / "0001-first.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MemoryFormatError, match=r"0001-first\.safetensors: sample 1 differs"):
        upkeep.forget(folder, sample=make_sample(0).sample_id)
    assert upkeep.forget(folder, task="first").samples == 2
    assert names(folder) == ["first", "second"]


def test_forgetting_reaches_lines_that_were_left(folder: Path) -> None:
    upkeep.rollback(folder, "first")
    commit(ReplayMemory.open(folder), make_task("third", 4), model="m3")
    assert upkeep.forget(folder, task="second").generations == ["0002"]
    assert "prompt 2" not in everything(folder).decode("utf-8", "replace")
    assert names(folder) == ["first", "third"]


def test_some_samples_stay_in_the_next_generation(folder: Path) -> None:
    memory = ReplayMemory.open(folder)
    kept, other = memory.tasks[0].samples[1], memory.tasks[1]
    commit(memory, make_task("third", 4), model="m3", keep={0: [1], 1: [0, 1]})
    assert memory.tasks[1] is other
    assert prompts(folder) == [["prompt 1 ∑"], ["prompt 2 ∑", "prompt 3 ∑"], ["prompt 4 ∑", "prompt 5 ∑"]]
    (again,) = ReplayMemory.open(folder).tasks[0].samples
    assert torch.equal(again.logits.code_AK, kept.logits.code_AK)
    assert torch.equal(again.attention.rows.decode(), kept.attention.rows.decode())
    assert again.attention.rows.tensors().keys() == kept.attention.rows.tensors().keys()
    upkeep.rollback(folder, "second")
    assert prompts(folder)[0] == ["prompt 0 ∑", "prompt 1 ∑"]
    for wrong in ({0: [2]}, {0: [0, 0]}, {0: [-1]}, {2: [0]}, {-1: [0]}):
        with pytest.raises(ValueError, match="keep: "):
            commit(ReplayMemory.open(folder), keep=wrong)


def test_collecting(folder: Path) -> None:
    memory = ReplayMemory.open(folder)
    commit(memory, make_task("third", 4), model="m3", keep={0: []})
    (folder / "notes.txt").write_text("mine")
    (folder / ".0009-x.jsonl.abcd1234").write_text("half")
    # Of a commit that died before its generation was there; the name alone would say nothing.
    write_tensors(folder / "importance-0009.safetensors", {"x": torch.zeros(2)})
    (folder / "0009-x.safetensors").write_text("mine")
    half = 4 + (folder / "importance-0009.safetensors").stat().st_size
    assert len(Lineage.read(folder).leftovers()) == 2
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    dropped, freed = upkeep.collect(folder)
    assert (dropped, freed) == ([], half)
    dropped, freed = upkeep.collect(folder, keep=2)
    assert dropped == ["0001"]
    dropped, more = upkeep.collect(folder, keep=1)
    assert dropped == ["0002"]
    assert more > freed > 0
    marker = (folder / "manifest.json").stat().st_size
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0 < size - half - freed - more - left < 3 * marker
    assert prompts(folder) == [[], ["prompt 2 ∑", "prompt 3 ∑"], ["prompt 4 ∑", "prompt 5 ∑"]]
    assert not list(folder.glob("0001*"))
    assert (folder / "notes.txt").read_text() == (folder / "0009-x.safetensors").read_text() == "mine"
    assert upkeep.verify(folder)[1] == []
    with pytest.raises(ConfigError, match="--keep: 0 must be at least 1"):
        upkeep.collect(folder, keep=0)
    commit(ReplayMemory.open(folder), make_task("fourth"), model="m4")
    assert names(folder) == ["first", "second", "third", "fourth"]


def test_two_processes_do_not_commit_over_each_other(folder: Path) -> None:
    one, other = ReplayMemory.open(folder), ReplayMemory.open(folder)
    commit(one, make_task("third", 4), model="m3")
    with pytest.raises(OutputError, match=r"manifest\.json: another process has changed the memory"):
        commit(other, make_task("late", 6), model="m4")
    assert names(folder) == ["first", "second", "third"]
    with pytest.raises(OutputError, match="already holds a memory"):
        commit(ReplayMemory(folder), make_task("late", 6))


def changes() -> dict[str, Callable[[Path], Any]]:
    return {
        "commit": lambda folder: commit(ReplayMemory.open(folder), make_task("third", 4), model="m3", keep={0: [1]}),
        "rollback": lambda folder: upkeep.rollback(folder, "first"),
        "forget task": lambda folder: upkeep.forget(folder, task="first"),
        "forget sample": lambda folder: upkeep.forget(folder, sample=make_sample(1).sample_id),
        "gc": lambda folder: upkeep.collect(folder, keep=1),
    }


class Stops:
    """The function, but for its n-th call, which does not come to be: the process died, or the disk was full."""

    def __init__(self, function: Callable[..., Any], at: int, error: type[BaseException]) -> None:
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("error", [Crash, OSError])
@pytest.mark.parametrize("name", changes())
def test_stopped_at_every_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[BaseException]
) -> None:
    """Before or after, never between; what was current is current or what is to be current is; again works."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    old, points = prompts(folder), 0
    shutil.copytree(folder, folder.parent / "done")
    changes()[name](folder.parent / "done")
    new = prompts(folder.parent / "done")
    for place, function in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
        at = 1
        while True:
            shutil.rmtree(folder)
            for path, content in before.items():
                path.parent.mkdir(exist_ok=True, parents=True)
                path.write_bytes(content)
            stop = Stops(getattr(place, function), at, error)
            with monkeypatch.context() as patch:
                # Not ``self``-bound: a plain object in a class is called without the instance.
                patch.setattr(place, function, (lambda path, *a, s=stop, **k: s(path, *a, **k)))
                try:
                    changes()[name](folder)
                    stopped = False
                except (Crash, OutputError):
                    stopped = True
            if not stopped and stop.calls < at:
                break
            points += 1
            now = prompts(folder)
            assert now in (old, new)
            read_all(folder, verify=True)
            assert upkeep.verify(folder)[1] == []
            if now == old:
                changes()[name](folder)
                assert prompts(folder) == new
            upkeep.collect(folder, keep=1 if name == "gc" else None)
            assert Lineage.read(folder).leftovers() == []
            if name.startswith("forget"):
                assert b"prompt 1" not in everything(folder)
            at += 1
    assert points >= (3 if name == "rollback" else 6)


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading needs no more than reading; a change is refused by name and changes nothing."""
    before = everything(folder)

    def refuses(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    for function in ("tempfile.mkstemp", "pathlib.Path.unlink", "os.replace"):
        monkeypatch.setattr(function, refuses)
    assert read_all(folder, verify=True).generation == 2
    assert upkeep.verify(folder)[1] == []
    for name, change in changes().items():
        with pytest.raises(OutputError, match=r"Read-only file system"):
            change(folder)
        assert everything(folder) == before, name


def test_the_manifest_is_small_and_the_generation_readable(folder: Path) -> None:
    assert set(manifest_of(folder)) == {"format", "version", "current", "generations", "sha256"}
    assert json.loads(current_of(folder).read_text("utf-8"))["tasks"][0]["name"] == "first"

"""Files of somebody else's in every folder that a command is given survive it: run, killed, resumed, tidied up."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from zygote import run_seekr

NAMES = [
    "notes.txt", ".notes.original", ".thesis.a1b2c3d4", "0009-mine.jsonl", "2026-photos.safetensors", "state-0001.txt",
    "importance-0009.safetensors", "photos/a.jpg", "000009/thesis.tex", "000009/mine.safetensors",
    "first.answers-me.txt", "first.answers-0-1.txt", ".x.abcdef12.partial/mine.txt", "generations.bak/0001.json",
]  # fmt: skip
"""Also such as this program gives to files of its own."""


class Planted:
    """Somebody's files in folders, beside what is there, with links to a folder and a file of theirs elsewhere.

    Args:
        home: for what the links lead to.
        folders: are made if they are missing.
    """

    def __init__(self, home: Path, *folders: Path) -> None:
        home.mkdir(parents=True)
        (home / "thesis.tex").write_text("precious")
        self.files = {home / "thesis.tex": "precious"}
        self.links: dict[Path, Path] = {}
        for number, folder in enumerate(folders):
            for name in NAMES:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"mine {number} {name}")
                self.files[path] = path.read_text()
            for name, target in (("0008-linked.jsonl", home / "thesis.tex"), ("000008", home), (".y.abcdef12", home)):
                (folder / name).symlink_to(target)
                self.links[folder / name] = target

    def check(self) -> None:
        assert {path: path.read_text() if path.is_file() else None for path in self.files} == self.files
        assert {path: path.readlink() if path.is_symlink() else None for path in self.links} == self.links


@pytest.fixture
def killed(tmp_path):
    """Runs a command that is killed at a fault point."""

    def run(fault, *arguments):
        done = run_seekr(arguments, tmp_path, environment={"SEEKR_FAULT": fault})
        assert done.code == -9, (done.code, done.err)

    return run


@pytest.fixture
def memory(world, tmp_path):
    return shutil.copytree(world.run / "memory", tmp_path / "memory")


def refused(done, *words):
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.err.count("\n") == 1, done.err
    for word in words:
        assert str(word) in done.err


def own_files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        # A killed process's lock is held by nobody, and goes with whoever takes it next.
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.parametrize("fault", ["learn.scored:1", "checkpoint.written:2", "model.written:1", "file.written:9"])
def test_a_learning_resumed_with_another_memory_or_output(world, seekr, killed, tmp_path, fault):
    command = world.learn(tmp_path)
    killed(fault, *command)
    planted = Planted(tmp_path / "home", tmp_path / "documents")
    before = own_files(tmp_path)
    other = world.learn(tmp_path, memory=tmp_path / "documents")
    refused(seekr(*other, "--resume"), "--memory", tmp_path / "documents", tmp_path / "memory", "begun with")
    refused(seekr(*world.learn(tmp_path, memory=tmp_path / "new"), "--resume"), "--memory", "begun with")
    refused(seekr(*world.learn(tmp_path, task=world.second), "--resume"), "task 'second'")
    refused(seekr(*world.learn(tmp_path, model=world.learnt), "--resume"), "begun with another model")
    refused(seekr(*command, "--resume", "seed=7"), "begun with another seed")
    assert own_files(tmp_path) == before
    planted.check()
    done = seekr(*command, "--resume")
    assert done.code == 0, done.err
    assert not (tmp_path / "model.checkpoints").exists()
    assert not [path for path in tmp_path.rglob("*") if "seekr" in path.name or path.name.endswith(".lock")]
    planted.check()


@pytest.mark.parametrize("fault", ["learn.model_saved:1", "model.renamed:1", "learn.committed:1", "learn.cleared:1"])
def test_a_killed_learning_whose_folders_hold_other_things(world, seekr, killed, memory, tmp_path, fault):
    command = world.learn(tmp_path, model=world.run / "models/02-second", name="third", memory=memory)
    planted = Planted(tmp_path / "home", memory, memory / "generations", tmp_path / "model.checkpoints")
    killed(fault, *command)
    (tmp_path / "model/notes.txt").write_text("mine")
    saves = [path for path in (tmp_path / "model.checkpoints").iterdir() if (path / "state.json").exists()]
    for path in saves:
        (path / "mine.txt").write_text("mine")
    done = seekr(*command, "--resume")
    assert (tmp_path / "model/notes.txt").read_text() == "mine"
    if done.code == 2:
        # The model without its memory is gone, what is not known to be of it stays and stands in the way.
        refused(done, "model: already exists and is not empty")
        (tmp_path / "model/notes.txt").unlink()
        done = seekr(*command, "--resume")
    assert done.code == 0, done.err
    assert all((path / "mine.txt").read_text() == "mine" for path in saves)
    assert set((tmp_path / "model.checkpoints").rglob("*.safetensors")) <= planted.files.keys()
    planted.check()
    assert seekr("memory", "verify", memory).code == 0


def test_everything_that_is_done_to_a_memory(world, seekr, killed, memory, tmp_path):
    planted = Planted(tmp_path / "home", memory, memory / "generations", tmp_path)
    for fault in ("file.written:1", "file.renamed:2"):
        killed(fault, "memory", "forget", memory, "--task", "first")
    for words in (
        ["rollback", memory, "--to", "first"], ["gc", memory], ["forget", memory, "--task", "first"],
        ["gc", memory, "--keep", "1"], ["export", memory, tmp_path / "x.tar"],
    ):  # fmt: skip
        done = seekr("memory", *words)
        assert done.code == 0, done.err
        planted.check()
    assert not list(memory.glob("0001-first*"))
    assert not list(memory.glob("0002-second*"))
    refused(seekr("memory", "import", memory, tmp_path / "x.tar"), "already exists")
    planted.check()


def test_a_memory_that_is_learnt_on_writes_over_nothing(world, seekr, memory, tmp_path):
    mine = [memory / f"{stem}.{end}" for stem in ("0003-third", "importance-0003") for end in ("jsonl", "safetensors")]
    mine.append(memory / "generations/0003.json")
    for path in mine:
        path.write_text("mine")
    done = seekr(*world.learn(tmp_path, model=world.run / "models/02-second", name="third", memory=memory))
    assert done.code == 0, done.err
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    assert seekr("memory", "verify", memory).code == 0


@pytest.mark.parametrize("keep", ["all", "last"])
def test_a_run_killed_and_resumed(world, seekr, killed, tmp_path, keep):
    run = tmp_path / "run"
    command = ["run", world.stream, "--output", run, f"keep_models={keep}"]
    killed("evaluation.answered:1", *command)
    planted = Planted(
        tmp_path / "home", run, run / "memory.bak", run / "evaluations", run / "evaluations/00-base",
        run / "checkpoints", run / "models", run / "models/mine",
    )  # fmt: skip
    for fault in ("checkpoint.removed:1", "learn.model_saved:1", "learn.committed:1"):
        killed(fault, *command, "--resume")
        planted.check()
    more = Planted(tmp_path / "home2", run / "memory", run / "memory/generations", run / "models/01-first")
    killed("run.task_evaluated:2", *command, "--resume")
    done = seekr(*command, "--resume")
    assert done.code == 0, done.err
    planted.check()
    more.check()
    assert (run / "models/01-first/model.safetensors").exists() == (keep == "all")
    assert (run / "models/02-second/model.safetensors").exists()
    assert not list(run.rglob(".seekr*"))


def test_a_model_of_a_run_is_not_removed_for_a_memory_that_went_back(world, seekr, tmp_path):
    shutil.copytree(world.run, tmp_path / "run")
    before = own_files(tmp_path / "run/models")
    assert seekr("memory", "rollback", tmp_path / "run/memory", "--to", "first").code == 0
    refused(seekr("run", world.stream, "--output", tmp_path / "run", "--resume"), "02-second: already exists")
    assert own_files(tmp_path / "run/models") == before


@pytest.mark.parametrize("moved", ["renamed", "copied"])
def test_a_run_that_was_moved_goes_on(world, seekr, killed, tmp_path, moved):
    killed("learn.model_saved:2", "run", world.stream, "--output", tmp_path / "run")
    (shutil.move if moved == "renamed" else shutil.copytree)(tmp_path / "run", tmp_path / "there")
    done = seekr("run", world.stream, "--output", tmp_path / "there", "--resume")
    assert done.code == 0, done.err


def test_folders_inside_each_other_are_refused(world, seekr, memory, tmp_path):
    (tmp_path / "link").symlink_to(memory)
    inside = [
        (memory, memory), (memory, memory / "model"), (tmp_path / "model/memory", tmp_path / "model"),
        (memory, tmp_path / "link/model"), (tmp_path / "new/../memory", memory / "."),
        (tmp_path / "m.checkpoints/memory", tmp_path / "m"), (memory, tmp_path / "link"),
        (tmp_path / "m.checkpoints", tmp_path / "m"), (tmp_path / "x.checkpoints/a/b", tmp_path / "x"),
    ]  # fmt: skip
    before = own_files(tmp_path), sorted(os.listdir(tmp_path))
    for one, other in inside:
        for more in ([], ["--resume"]):
            done = seekr(*world.learn(tmp_path, memory=one, output=other, model=world.learnt), *more)
            refused(done, one)
            assert (own_files(tmp_path), sorted(os.listdir(tmp_path))) == before


def test_killed_exports_and_imports_leave_nothing_for_long(world, seekr, killed, memory, tmp_path):
    def hidden():
        return sorted(name for name in os.listdir(tmp_path) if name.startswith("."))

    target, there = tmp_path / "x.tar", tmp_path / "there"
    planted = Planted(tmp_path / "home", tmp_path)
    mine = hidden()
    for _ in range(2):
        killed("file.written:1", "memory", "export", memory, target)
    assert len(hidden()) > len(mine)
    assert seekr("memory", "export", memory, target).code == 0
    assert hidden() == mine
    for _ in range(2):
        killed("file.written:3", "memory", "import", there, target)
    assert len(hidden()) > len(mine)
    assert seekr("memory", "import", there, target).code == 0
    assert hidden() == mine
    planted.check()
    assert seekr("memory", "verify", there).code == 0


def test_a_killed_import_goes_with_whatever_comes_next(world, seekr, killed, memory, tmp_path):
    target, there = tmp_path / "x.tar", tmp_path / "there"
    assert seekr("memory", "export", memory, target).code == 0
    killed("file.written:3", "memory", "import", there, target)
    assert [name for name in os.listdir(tmp_path) if ".partial" in name]
    assert seekr(*world.learn(tmp_path, memory=there)).code == 0
    assert sorted(os.listdir(tmp_path)) == ["memory", "model", "there", "x.tar"]


def test_a_killed_merge_leaves_nothing_for_long(world, seekr, killed, tmp_path):
    adapter = world.learn(tmp_path, memory=tmp_path / "m", output=tmp_path / "adapter")
    assert seekr(*adapter, "peft={peft_type: lora, r: 2, target_modules: all-linear}").code == 0
    planted = Planted(tmp_path / "home", tmp_path)
    before = sorted(os.listdir(tmp_path))
    for _ in range(2):
        killed("model.written:1", "export", "--merge", tmp_path / "adapter", tmp_path / "plain")
    assert len(os.listdir(tmp_path)) > len(before) + 1
    assert seekr("export", "--merge", tmp_path / "adapter", tmp_path / "plain").code == 0
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "plain"])
    assert not list((tmp_path / "plain").glob(".*"))
    planted.check()


def test_an_evaluation_killed_and_resumed(world, seekr, killed, tmp_path):
    command = ["evaluate", "--model", world.learnt, "--task", world.first, "--max-new-tokens", "4"]
    command += ["--output", tmp_path / "scores"]
    killed("evaluation.answered:1", *command)
    planted = Planted(tmp_path / "home", tmp_path / "scores")
    done = seekr(*command, "--resume")
    assert done.code == 0, done.err
    planted.check()
    mine = tmp_path / "other"
    mine.mkdir()
    (mine / "first.answers-0-1.jsonl").write_text("mine\n")
    refused(seekr(*command[:-1], mine, "--resume"), "first.answers-0-1.jsonl: is not a journal")
    assert (mine / "first.answers-0-1.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    "words",
    [["run", "STREAM", "--output"], ["run", "STREAM", "--resume", "--output"],
     ["evaluate", "--model", "MODEL", "--task", "TASK", "--output"],
     ["compare", "RUN", "RUN", "--output"], ["demo", "--quick", "--output"], ["export", "--merge", "MODEL"],
     ["benchmark", "fetch", "trace", "--from", "TASK", "--output"]],
    ids=lambda words: "-".join(words[:3]),
)  # fmt: skip
def test_a_folder_that_holds_something_is_refused(world, seekr, tmp_path, words):
    planted = Planted(tmp_path / "home", tmp_path / "documents")
    names = {"STREAM": world.stream, "MODEL": world.learnt, "TASK": world.first, "RUN": world.run}
    done = seekr(*[names.get(word, word) for word in words], tmp_path / "documents")
    refused(done, tmp_path / "documents")
    planted.check()


def test_a_new_memory_is_not_made_of_a_folder_that_holds_something(world, seekr, tmp_path):
    planted = Planted(tmp_path / "home", tmp_path / "documents")
    for more in ([], ["--resume"]):
        refused(seekr(*world.learn(tmp_path, memory=tmp_path / "documents"), *more), "not a replay memory")
        planted.check()
    assert sorted(os.listdir(tmp_path)) == ["documents", "home"]

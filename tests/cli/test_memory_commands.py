"""``seekr memory``: looking after a memory from the command line."""

import json
import shutil

import pytest
from cli_world import FAST

from seekr_cl.system.locks import hold

COMMANDS = ("show", "log", "verify", "gc")


@pytest.fixture
def memory(world, tmp_path):
    """A copy of a run's memory: two generations."""
    return shutil.copytree(world.run / "memory", tmp_path / "memory")


def lines(done):
    assert done.code == 0, done.err
    assert done.err == ""
    return done.out.splitlines()


def generation(memory, number):
    return json.loads((memory / "generations" / f"{number:04d}.json").read_text(encoding="utf-8"))


def texts(memory):
    return b"".join(path.read_bytes() for path in memory.rglob("*") if path.is_file())


def test_log_and_verify(seekr, memory):
    first, second, legend = lines(seekr("memory", "log", memory))
    model = generation(memory, 2)["model_sha256"]
    assert first.startswith("  0001  first  20")
    assert second.startswith("* 0002  second  20")
    assert "  6 samples  " in second
    assert f"model {model[:12]}  seekr (preset default)" in second
    assert legend == "* is current"
    assert lines(seekr("memory", "verify", memory)) == [f"{memory}: 2 generations, every file is what was written"]


def test_verify_names_everything_that_is_broken(seekr, memory):
    for name in ("0001-first.safetensors", "0002-second.jsonl"):
        content = bytearray((memory / name).read_bytes())
        content[-2] ^= 1
        (memory / name).write_bytes(content)
    (memory / "importance-0001.safetensors").unlink()
    done = seekr("memory", "verify", memory)
    assert done.code == 2
    broken = done.err.splitlines()
    assert all(line.startswith("error: ") for line in broken)
    for name in ("0001-first.safetensors", "0002-second.jsonl", "importance-0001.safetensors"):
        assert len([line for line in broken if str(memory / name) in line]) == 1
    assert "Traceback" not in done.err


def test_rollback_and_learning_on_another_way(world, seekr, memory, tmp_path):
    said = "\n".join(lines(seekr("memory", "rollback", memory, "--to", "first")))
    assert "generation 0001, after task 'first', is current again" in said
    assert generation(memory, 1)["model_sha256"] in said
    assert str(world.run / "models" / "01-first") in said
    # It belongs to the older model now, and to that alone.
    wrong = seekr(*world.learn(tmp_path, model=world.run / "models" / "02-second", task=world.second, memory=memory))
    assert wrong.code == 2
    assert "after task 'first'" in wrong.err
    assert "belongs to generation 0002, after task 'second'" in wrong.err
    right = seekr(*world.learn(tmp_path, model=world.run / "models" / "01-first", task=world.second, memory=memory))
    assert right.code == 0, right.err
    assert [line[:6] for line in lines(seekr("memory", "log", memory))[:3]] == ["  0001", "- 0002", "* 0002"]
    (said,) = lines(seekr("memory", "gc", memory))
    assert "generations 0002 removed" in said
    assert "kB freed" in said


def test_forgetting_a_task(seekr, memory):
    kept = (memory / "0001-first.jsonl").read_bytes().splitlines()
    assert len(kept) == 3
    said = "\n".join(lines(seekr("memory", "forget", memory, "--task", "first")))
    assert "3 samples with texts and signals removed from generations 0001, 0002" in said
    assert "models keep what they have learned" in said
    assert "head importance is a sum over tasks that holds this one's statistics" in said
    assert not list(memory.glob("0001-first*"))
    # The second task may have drawn the same letters: its samples are its own.
    assert not [
        line for line in kept if line in texts(memory).replace((memory / "0002-second.jsonl").read_bytes(), b"")
    ]
    assert "first (forgotten)" in lines(seekr("memory", "log", memory))[0]
    lines(seekr("memory", "verify", memory))


def test_forgetting_a_sample_by_the_id_that_show_prints(seekr, memory):
    def rows():
        done = seekr("memory", "show", memory, "--samples", "--task", "second")
        assert done.code == 0
        return [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if line[0] == "│"]

    before = rows()
    assert [row[1] for row in before] == ["second"] * 3
    wanted, _, tokens, prompt, completion = before[1]
    assert tokens == "5"
    assert completion == prompt[0] * 2
    said = lines(seekr("memory", "forget", memory, "--sample", wanted))
    assert said[0].startswith(f"sample {wanted}: 1 samples with texts and signals removed from generations 0002;")
    assert rows() == [before[0], before[2]]
    assert wanted.encode() not in texts(memory)
    again = seekr("memory", "forget", memory, "--sample", wanted)
    assert again.code == 2
    assert f"holds anything of sample '{wanted}'" in again.err


def test_a_forgetful_memory_is_learnt_on(world, seekr, memory, tmp_path):
    lines(seekr("memory", "forget", memory, "--task", "first"))
    done = seekr(
        *world.learn(tmp_path, model=world.run / "models" / "02-second", memory=memory, name="third"), "replay.every=1"
    )
    assert done.code == 0, done.err
    assert "generation 3, 6 samples" in done.out


def test_to_another_machine(world, seekr, memory, tmp_path):
    (said,) = lines(seekr("memory", "export", memory, tmp_path / "memory.tar"))
    assert "seekr memory import FOLDER memory.tar" in said
    (said,) = lines(seekr("memory", "import", tmp_path / "there", tmp_path / "memory.tar"))
    assert f"{tmp_path / 'there'}: generation 2, 6 samples" in said
    assert generation(memory, 2)["model_sha256"] in said
    done = seekr(
        *world.learn(tmp_path, model=world.run / "models" / "02-second", memory=tmp_path / "there", name="third")
    )
    assert done.code == 0, done.err
    assert len(lines(seekr("memory", "log", tmp_path / "there"))) == 3
    again = seekr("memory", "import", tmp_path / "there", tmp_path / "memory.tar")
    assert (again.code, again.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rollback", "MEMORY", "--to", "frist"], "did you mean 'first'"),
        (["forget", "MEMORY", "--task", "frist"], "did you mean 'first'"),
        (["forget", "MEMORY", "--sample", "0"], "show --samples"),
        (["show", "MEMORY", "--task", "none"], "keeps nothing of a task 'none'"),
        (["gc", "MEMORY", "--keep", "0"], "must be at least 1"),
        (["import", "new", "nothing.tar"], "nothing.tar: cannot be read"),
        (["export", "MEMORY", "MEMORY"], "already exists"),
        *[([word, "nowhere"], "not a replay memory") for word in COMMANDS],
        (["rollback", "nowhere", "--to", "x"], "not a replay memory"),
        (["export", "nowhere", "x"], "not a replay memory"),
    ],
)
def test_bad_words_are_one_line_and_change_nothing(seekr, memory, words, says):
    before = texts(memory)
    done = seekr("memory", *[memory if word == "MEMORY" else word for word in words])
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert says in done.err
    assert texts(memory) == before


def test_workers_read_the_memory(world, seekr, memory, tmp_path):
    """Forked data loader workers, as on a big machine."""
    model = world.run / "models" / "02-second"
    results = []
    for workers in (0, 2):
        copy = shutil.copytree(memory, tmp_path / f"memory{workers}")
        done = seekr(
            "learn", "--model", model, "--task", world.first, "--name", "third", "--memory", copy,
            "--output", tmp_path / f"model{workers}", *FAST, f"dataloader_num_workers={workers}", "replay.every=1",
        )  # fmt: skip
        assert done.code == 0, done.err
        results.append((tmp_path / f"model{workers}" / "model.safetensors").read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "words", [("rollback", "--to", "first"), ("forget", "--task", "first"), ("gc",), ("import",)], ids=lambda w: w[0]
)
def test_a_memory_in_use_is_left_alone(seekr, memory, tmp_path, words):
    command, *rest = words
    packed = tmp_path / "memory.tar"
    lines(seekr("memory", "export", memory, packed))
    before = texts(memory)
    with hold(memory, "memory"):
        done = seekr("memory", command, memory, *([packed] if command == "import" else rest))
        assert lines(seekr("memory", "log", memory))
    assert done.code == 2
    assert f"{memory}: this memory is in use by process" in done.err
    assert texts(memory) == before

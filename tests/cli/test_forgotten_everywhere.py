"""What ``memory forget`` leaves of a text and where, what ``--everywhere`` takes too, and who may read it meanwhile."""

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
from cli_world import write
from zygote import run_seekr

TEXT = "cabbage"
"""Eight tokens that stand in no other text."""


@pytest.fixture
def secret(world, tmp_path):
    """A task whose training and test examples all have a text that nothing else has."""
    rows = [{"prompt": f"{letter}{TEXT}=", "answer": letter * 2} for letter in "abcdefgh"]
    for split, count in (("train", 8), ("test", 2)):
        write(tmp_path / "secret" / f"{split}.json", rows[:count])
    return tmp_path / "secret"


@pytest.fixture
def interrupted(world, seekr, secret, tmp_path):
    """A finished run of the task and another, and a learning of it that was killed."""
    stream = world.stream_with(tmp_path)
    content = json.loads(stream.read_text())
    content["tasks"][0]["data"] = str(secret)
    write(stream, content)
    done = seekr("run", stream, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    command = world.learn(tmp_path, task=secret, memory=tmp_path / "memory", output=tmp_path / "model")
    assert run_seekr(command, tmp_path, environment={"SEEKR_FAULT": "learn.scored:1"}).code == -9
    return tmp_path / "run"


def holding(folder):
    """Files with the text in them, by name; what is only about the test's own input left out."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and TEXT.encode() in path.read_bytes() and "secret" not in path.relative_to(folder).parts
    )


def said(done):
    assert done.code == 0, done.err
    return done.out


def test_what_is_left_is_named_and_goes(world, seekr, interrupted, tmp_path):
    memory = interrupted / "memory"
    said(seekr("memory", "export", memory, tmp_path / "memory.tar"))
    before = holding(tmp_path)
    assert {name.split("/")[0] for name in before} == {"run", "model.checkpoints", "memory.tar"}
    scores = (interrupted / "scores.json").read_bytes()

    out = said(seekr("memory", "forget", memory, "--task", "secret"))
    left = holding(tmp_path)
    assert not [name for name in left if name.startswith("run/memory")]
    predictions = [f"run/evaluations/{stage}/secret.jsonl" for stage in ("00-base", "01-secret", "02-second")]
    assert [name for name in left if name.startswith("run/")] == predictions
    for name in predictions:
        assert f"left: {tmp_path / name}: 2 predictions" in out
    assert f"--everywhere {interrupted}" in out
    assert "exports" in out

    out = said(seekr("memory", "forget", memory, "--task", "secret", "--everywhere", interrupted, tmp_path / "model"))
    for name in [*predictions, "model.checkpoints"]:
        assert f"removed from {tmp_path / name}" in out
    assert holding(tmp_path) == ["memory.tar"]
    assert not (tmp_path / "model.checkpoints").exists()
    assert "left:" not in out

    # What is left works: the scores stay, are compared and continued.
    assert (interrupted / "scores.json").read_bytes() == scores
    said(seekr("compare", interrupted, world.run))
    said(seekr("run", tmp_path / "stream.yaml", "--output", interrupted, "--resume"))
    again = seekr("memory", "forget", memory, "--task", "secret", "--everywhere", interrupted)
    assert (again.code, again.err.count("\n")) == (2, 1)


def test_the_trainers_folder_and_the_models_hold_no_texts(interrupted):
    for folder in (interrupted / "models", Path(tempfile.gettempdir()) / "seekr-trainer"):
        assert not holding(folder) if folder.exists() else True


def test_a_sample_goes_from_checkpoints_predictions_and_the_other_memory(world, seekr, interrupted, tmp_path):
    copy = shutil.copytree(interrupted / "memory", tmp_path / "copy")
    line = (copy / "0001-secret.jsonl").read_text().splitlines()[0]
    one = json.loads(line)
    prediction = interrupted / "evaluations/02-second/secret.jsonl"
    rows = [json.loads(row) for row in prediction.read_text().splitlines()]
    rows[0] |= {"prompt": one["prompt"], "references": [one["completion"]]}
    prediction.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = said(seekr("memory", "forget", copy, "--sample", one["id"], "--everywhere", interrupted))
    assert f"removed from {interrupted / 'memory'}: 1 samples" in out
    assert f"removed from {prediction}: 1 predictions" in out
    assert [json.loads(row)["prompt"] for row in prediction.read_text().splitlines()] == ["", rows[1]["prompt"]]
    for folder in (copy, interrupted / "memory"):
        assert one["id"].encode() not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert seekr("memory", "verify", folder).code == 0


def test_folders_that_are_none_of_ours_are_refused_first(world, seekr, interrupted, tmp_path):
    write(tmp_path / "documents/secret.jsonl", json.dumps({"prompt": TEXT, "prediction": "", "score": 1}))
    said(seekr("memory", "export", interrupted / "memory", tmp_path / "x.tar"))
    before = holding(tmp_path)
    for place, words in (
        (tmp_path / "documents", "not a folder of seekr run"),
        (tmp_path / "x.tar", "is a file; import"),
    ):
        done = seekr("memory", "forget", interrupted / "memory", "--task", "secret", "--everywhere", interrupted, place)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
        assert holding(tmp_path) == before


def modes(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mode & 0o777
        for path in sorted(folder.rglob("*"))
        if path.name != "secret"
    }


def test_files_with_texts_are_for_their_owner_alone(world, seekr, interrupted, tmp_path):
    said(seekr("memory", "export", interrupted / "memory", tmp_path / "memory.tar"))
    said(seekr("memory", "import", tmp_path / "there", tmp_path / "memory.tar"))
    evaluate = ["evaluate", "--model", world.learnt, "--task", tmp_path / "secret", "--max-new-tokens", "4"]
    said(seekr(*evaluate, "--output", tmp_path / "evaluated"))
    texts = [tmp_path / name for name in holding(tmp_path)]
    assert {path.relative_to(tmp_path).parts[0] for path in texts} == {
        "run", "model.checkpoints", "memory.tar", "there", "evaluated",
    }  # fmt: skip
    assert {str(path): path.stat().st_mode & 0o777 for path in texts} == {str(path): 0o600 for path in texts}
    for folder in (interrupted / "memory", tmp_path / "there", tmp_path / "model.checkpoints"):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert set(modes(folder).values()) == {0o600, 0o700}
    assert (interrupted / "scores.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mode", "file", "folder"), [("0640", 0o640, 0o750), ("'0644'", 0o644, 0o755)])
def test_a_mode_that_lets_colleagues_read(world, seekr, tmp_path, mode, file, folder):
    said(seekr(*world.learn(tmp_path), f"memory.mode={mode}"))
    memory = tmp_path / "memory"
    assert memory.stat().st_mode & 0o777 == folder
    assert set(modes(memory).values()) == {file, folder}
    # What is done to it afterwards keeps to that.
    said(seekr("memory", "forget", memory, "--task", "first"))
    said(seekr("memory", "gc", memory))
    said(seekr("memory", "export", memory, tmp_path / "x.tar"))
    assert set(modes(memory).values()) == {file, folder}
    assert (tmp_path / "x.tar").stat().st_mode & 0o777 == file
    with tarfile.open(tmp_path / "x.tar") as packed:
        assert {member.mode for member in packed} == {file}


def test_predictions_of_a_method_without_a_memory_have_a_mode_too(world, seekr, tmp_path):
    done = seekr("run", world.stream, "--output", tmp_path / "run", "--method", "seqft", "memory.mode=0640")
    assert done.code == 0, done.err
    found = list((tmp_path / "run/evaluations").rglob("*.jsonl"))
    assert found
    assert {path.stat().st_mode & 0o777 for path in found} == {0o640}


@pytest.mark.parametrize("mode", ["640", "0400", "0755", "rw", "true", "-1", "0o7777", "[0600]", "1.5"])
def test_modes_that_are_none(world, seekr, tmp_path, mode):
    done = seekr(*world.learn(tmp_path), f"memory.mode={mode}")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "memory.mode" in done.err
    assert not (tmp_path / "memory").exists()

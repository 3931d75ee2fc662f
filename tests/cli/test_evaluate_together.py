"""``seekr evaluate`` in two real processes: one of them killed, gone on with by ``--launch``, the same as one alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import zygote
from cli_world import World, free_port, write

ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "use_cpu": True,
    "num_machines": 1,
    "num_processes": 2,
    "mixed_precision": "no",
}


def numbers(journal: Path) -> set[int]:
    return {json.loads(line)["index"] for line in journal.read_text(encoding="utf-8").splitlines()[1:]}


def evaluation(folder: Path) -> dict[str, Any]:
    """All that is written, but for how long it took."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}
    scores = json.loads(texts["scores.json"])
    assert scores.pop("timing")["new_tokens"] > 0
    return texts | {"scores.json": scores}


def test_two_processes_killed_and_resumed_are_one(
    world: World, seekr, together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("long", 21), ("short", 5)):
        rows = [{"prompt": "abcdefgh"[n % 8] * (1 + n % 5) + "=", "answer": "h" * (1 + n % 3)} for n in range(count)]
        write(tmp_path / name / "test.json", rows)
        write(tmp_path / name / "train.json", rows)
    words = ["evaluate", "--model", world.base, "--task", tmp_path / "long", tmp_path / "short", "--batch-size", 4]
    words += ["--max-new-tokens", 6, "--metric", "edit_similarity"]
    alone = seekr(*words, "--output", tmp_path / "alone")
    assert alone.code == 0, alone.err
    answers = [json.loads(line)["prediction"] for line in (tmp_path / "alone" / "long.jsonl").open(encoding="utf-8")]
    assert len(set(answers)) > 4
    words += ["--output", tmp_path / "together"]
    first, second = together(*words, environments=({}, {"SEEKR_FAULT": "evaluation.answered:2"}))
    assert second.code == -9
    assert first.code > 0, "it cannot have finished alone"
    # Each has answered prompts of its own: the first all of its half, the second two batches of the other.
    shares = [numbers(tmp_path / "together" / f"long.answers-{rank}-2.jsonl") for rank in (0, 1)]
    assert [len(share) for share in shares] == [11, 8]
    assert not shares[0] & shares[1]
    config = write(tmp_path / "accelerate.yaml", ACCELERATE | {"main_process_port": free_port()})
    monkeypatch.setenv("PYTHON_EXEC", str(zygote.shim(tmp_path / "python")))
    done = seekr(*words, "--resume", "--launch", config)
    assert done.code == 0, done.err
    assert done.out.count("scores and predictions in") == 1
    assert evaluation(tmp_path / "together") == evaluation(tmp_path / "alone")


def test_vllm_is_not_started_by_each_process(world: World, together, tmp_path: Path) -> None:
    words = ["evaluate", "--model", world.base, "--task", world.first, "--output", "scores", "--engine", "vllm"]
    done = together(*words, call="zygote:impatient_command")
    assert [one.code for one in done] == [2, 2]
    assert all("leave out --launch" in one.err for one in done if one.err)
    assert not (tmp_path / "scores").exists()

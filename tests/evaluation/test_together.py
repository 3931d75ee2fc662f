"""Two real processes that evaluate together: what they share, and how a signal to one of them stops both."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import zygote
from generating import random_model
from together import BENCHMARKS

from seekr_cl.evaluation.general import evaluate_general


@pytest.fixture
def data(tmp_path: Path) -> Path:
    choices = {"boolq": ("True", "False"), "piqa": ("A", "B")}
    for name, answers in choices.items():
        rows = [{"prompt": f"{letter} =", "answer": answers[n % 3 == 0]} for n, letter in enumerate("abcdefg")]
        for split in ("train", "test"):
            path = tmp_path / "data" / name / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "data"


def together(data: Path, place: Path) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    done = zygote.run("together:both", str(data), str(place), environment=shared)
    assert done.code == 0, done.err
    return [json.loads((place / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_benchmarks_are_shared_and_a_signal_to_one_stops_both(tmp_path, data, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    first, second = together(data, tmp_path)
    alone = evaluate_general(*random_model("llama"), 2, data, names=BENCHMARKS)
    assert first["general"] == second["general"] == json.loads(json.dumps(alone))
    assert (first["benchmarks"], second["benchmarks"]) == (1, 1)
    assert all(0 < task["score"] < 100 for task in alone["tasks"].values())
    # The second stops after its first batch of three; the first, who heard nothing, does its seven.
    assert (second["answered"], first["answered"]) == ([3], [3, 3, 1])
    assert (first["code"], second["code"]) == (143, 143)
    assert len(list((tmp_path / "answers").glob("t.answers-*"))) == 2

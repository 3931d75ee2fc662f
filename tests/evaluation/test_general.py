"""The real harness, offline, on local files: made ones, and real rows where they are at hand."""

import json
import os
import sys
from pathlib import Path

import pytest
from generating import ROOT, random_model, stories

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation.general import BENCHMARKS, evaluate_general, with_drift
from seekr_cl.evaluation.general_tasks import LOCAL


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def write(folder: Path, name: str, rows: list) -> None:
    (folder / name).mkdir()
    for split in ("train", "test"):
        (folder / name / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def test_answers_are_scored_by_the_harness(tmp_path):
    model, tokenizer = random_model("llama")
    rows = [{"prompt": f"{letter} =", "answer": "True"} for letter in "abcdef"]
    write(tmp_path, "boolq", rows)
    model.train()
    first = evaluate_general(model, tokenizer, 2, tmp_path, names=["boolq"])
    assert model.training
    right = first["tasks"]["boolq"]
    folder = tmp_path / "swapped"
    folder.mkdir()
    write(folder, "boolq", [row | {"answer": "False"} for row in rows])
    wrong = evaluate_general(model, tokenizer, 2, folder, names=["boolq"])["tasks"]["boolq"]
    # Each question is answered one way, so the two must make up 100.
    assert right["score"] + wrong["score"] == pytest.approx(100)
    assert (right["metric"], right["shots"], right["examples"]) == ("acc,none", 0, 6)
    assert first["harness"].startswith("lm-evaluation-harness 0.")
    assert first["mean"] == right["score"]


def test_every_benchmark_on_real_rows():
    folder = Path(os.environ.get("SEEKR_SHARED", ROOT / ".." / "shared")) / "data" / "general"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set SEEKR_SHARED to the folder with the real data")
    with pytest.raises(DataError, match=r"gsm8k cannot be evaluated .*256"):  # more than this model's whole context
        evaluate_general(*random_model("llama"), 2, folder, limit=1, names=["gsm8k"])
    found = evaluate_general(*stories(), 2, folder, limit=2)
    assert {name: task["shots"] for name, task in found["tasks"].items()} == {
        "mmlu": 5, "gsm8k": 8, "bbh": 3, "tydiqa": 1, "boolq": 0, "piqa": 0,
    }  # fmt: skip
    assert all(task["examples"] == 2 and 0 <= task["score"] <= 100 for task in found["tasks"].values())
    assert {name: one.shots for name, one in BENCHMARKS.items()} == {name: one.shots for name, one in LOCAL.items()}


RESULT = {
    "harness": "h 1", "data": None, "limit": None, "seed": 1, "mean": 50.0,
    "tasks": {"boolq": {"score": 50.0, "stderr": 1.0, "metric": "acc,none", "shots": 0, "examples": 9}},
}  # fmt: skip


def test_drift_is_the_change_since_the_base_model():
    base = RESULT | {"mean": 60.0, "tasks": {"boolq": RESULT["tasks"]["boolq"] | {"score": 60.0}}}
    found = with_drift(RESULT, base)
    assert (found["base_mean"], found["drift"]) == (60, -10)
    assert (found["tasks"]["boolq"]["base"], found["tasks"]["boolq"]["drift"]) == (60, -10)
    for other in (
        {"limit": 5},
        {"data": "x"},
        {"tasks": {}},
        {"tasks": {"boolq": RESULT["tasks"]["boolq"] | {"shots": 1}}},
    ):
        with pytest.raises(ConfigError, match="--base"):
            with_drift(RESULT, base | other)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"test\.json: not readable"),
        ([], "not empty"),
        ([{"prompt": "a"}], r"row 0: needs the texts"),
        ([{"prompt": "a", "answer": "maybe"}], "answer 'maybe' is none of False, True"),
    ],
)
def test_bad_local_data_is_named(tmp_path, content, said):
    write(tmp_path, "boolq", [{"prompt": "a", "answer": "True"}])
    path = tmp_path / "boolq" / "test.json"
    path.unlink() if content is None else path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        evaluate_general(*random_model("llama"), 2, tmp_path, names=["boolq"])


def test_without_the_harness(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'seekr-cl\[general\]'"):
        evaluate_general(*random_model("llama"), 2, tmp_path)

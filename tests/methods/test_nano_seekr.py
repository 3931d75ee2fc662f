"""``examples/nano_seekr.py``, the method in one file, against the library: the same losses and the same heads."""

import json
import runpy
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tinylm import config_for, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from seekr_cl import Task, learn
from seekr_cl.demo.skills import STREAM_SKILLS, examples
from seekr_cl.memory import ReplayMemory

ROOT = Path(__file__).resolve().parents[2]
NANO = runpy.run_path(str(ROOT / "examples" / "nano_seekr.py"))
BASE = Path(str(files("seekr_cl.demo") / "model"))
ROWS = [examples(skill, 12, seed=1) for skill in STREAM_SKILLS[:2]]
GIVEN = {"keep": 3, "every": 2, "epochs": 2, "batch": 4, "lambda2": 10.0, "layers": 3, "heads": 9, "queries": 8}
SEED = 7


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks learned by the library: models ``m1`` and ``m2``, and ``memory``."""
    folder = tmp_path_factory.mktemp("library")
    method = {
        "name": "seekr", "lambda1": 0.5, "lambda2": GIVEN["lambda2"], "layer_budget": GIVEN["layers"],
        "head_budget": GIVEN["heads"], "query_budget": GIVEN["queries"], "attention_signal": "dense",
        "logits_top_k": None,
    }  # fmt: skip
    config = config_for(
        method, folder, replay={"samples": GIVEN["keep"], "every": GIVEN["every"]}, seed=SEED, learning_rate=5e-4,
        num_train_epochs=GIVEN["epochs"], per_device_train_batch_size=GIVEN["batch"], lr_scheduler_type="constant",
        group_by_length=False,
    )  # fmt: skip
    source = BASE
    for number, (skill, rows) in enumerate(zip(STREAM_SKILLS, ROWS), start=1):
        path = folder / f"{skill.name}.json"
        path.write_text(json.dumps(rows))
        learn(source, Task.load(str(path)), folder / "memory", folder / f"m{number}", config)
        source = folder / f"m{number}"
    return folder


@pytest.fixture(scope="module")
def nano() -> tuple:
    """The same by the single file: model, memory, and the losses of each task."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager")
    memory, given = NANO["Memory"](), NANO["Settings"](**GIVEN, rate=5e-4, seed=SEED)
    logs = []
    for task, rows in enumerate(ROWS, start=1):
        samples = [NANO["encode"](tokenizer, row) for row in rows]
        logs.append(NANO["learn"](model, memory, samples, task, given))
    return model, memory, logs


def test_each_step_has_the_librarys_losses(library: Path, nano: tuple) -> None:
    for number, expected in enumerate(nano[2], start=1):
        log = json.loads((library / f"m{number}" / "training_log.json").read_text())
        found = [
            {name: line[f"loss_{name}"] for name in ("task", "replay", "logits", "attention") if f"loss_{name}" in line}
            for line in log
            if "loss" in line
        ]
        assert [list(one) for one in found] == [list(one) for one in expected]
        for one, other in zip(found, expected):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    assert [list(one) for one in nano[2][1]].count(["replay", "logits", "attention"]) == 3


def test_the_same_heads_are_chosen_and_matter_as_much(library: Path, nano: tuple) -> None:
    store, (_, memory, _) = ReplayMemory.open(library / "memory"), nano
    kept = [memory.samples[0], memory.samples[GIVEN["keep"]]]
    assert [task.heads for task in store.tasks] == [one.heads_M for one in kept]
    assert len({json.dumps(one.heads_M) for one in kept}) == 2, "the second task changes nothing"
    torch.testing.assert_close(store.importance.sensitivity_NH, memory.S_NH, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(store.importance.forgettability_NH, memory.F_NH, rtol=1e-3, atol=1e-9)


def test_what_is_kept_is_the_same(library: Path, nano: tuple) -> None:
    store, (_, memory, _) = ReplayMemory.open(library / "memory"), nano
    stored = [(task, sample) for task in store.tasks for sample in task.samples]
    assert len(stored) == len(memory.samples) == 2 * GIVEN["keep"]
    for (task, found), one in zip(stored, memory.samples):
        assert torch.equal(found.ids_L, one.ids_L)
        assert torch.equal(found.attention.query_R, one.query_R)
        torch.testing.assert_close(found.logits.decode()[0], one.prob_AV, rtol=1e-3, atol=1e-5)
        for layer, rows_MRL in one.rows_MRL.items():
            own = found.attention.of_layer(task.heads, layer).decode()
            torch.testing.assert_close(own, rows_MRL, rtol=1e-3, atol=1e-5)


def test_the_models_end_alike(library: Path, nano: tuple) -> None:
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).state_dict()
    found, expected = weights(library / "m2"), nano[0].state_dict()
    off = sum((found[name] - expected[name]).square().sum() for name in found)
    way = sum((base[name] - expected[name]).square().sum() for name in found)
    # Adam makes whole steps of gradients that are rounding.
    assert way > 0
    assert off < 1e-4 * way


def test_it_is_one_short_file_of_plain_torch() -> None:
    text = (ROOT / "examples" / "nano_seekr.py").read_text()
    assert len(text.splitlines()) <= 200
    imports = [line.strip() for line in text.splitlines() if "seekr_cl" in line and "import" in line]
    assert [line.partition(" import")[0] for line in imports] == ["from seekr_cl.demo.skills"]

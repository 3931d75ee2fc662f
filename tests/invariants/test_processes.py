"""Several processes are one: B samples on each of two are 2 B on one, whatever the method.

Per-step losses and gradient norms are compared as curves: by the largest difference, and by the mean one, in which a
drift shows that stays below the noise at every single step.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matrix import ROWS
from pair import Pair, learn_two, pair
from tinylm import PLAIN_SGD, assert_same, differs, memory_tensors, weights

from seekr_cl.methods import get_method

WORDS = {"count": 18}
"""Not a multiple of the batch: the last one leaves a process with less than the other."""
REPLAY = {"samples": 5, "every": 1}
"""Five samples in batches of four: in the last one a process has none."""
LARGEST, MEAN = 5e-5, 5e-6
"""Relative to each value, or to one for smaller ones."""

CASES: dict[str, dict[str, Any]] = {name: {"method": {"name": name} | row.invariants} for name, row in ROWS.items()}
SEEKR = {"name": "seekr"} | ROWS["seekr"].invariants
CASES |= {
    # Gradients are measured term by term, in micro-batches after which nothing is reduced too.
    "seekr-measured": {
        "method": SEEKR | {"lambda2": "auto"},
        "measure_every": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
    },
    "seekr-joint": {"method": SEEKR, "replay": REPLAY | {"step": "joint"}, "gradient_accumulation_steps": 2},
    "seekr-checkpointed": {
        "method": SEEKR,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "replay-by-batches": {"method": "replay", "loss_average": "micro_batches"},
    "seekr-by-loss": {"method": SEEKR, "replay": REPLAY | {"choice": "loss", "task_weights": "similarity"}},
}


@pytest.fixture(scope="module")
def two() -> Iterator[Pair]:
    with pair() as processes:
        yield processes


def settings_of(case: dict[str, Any], batch: int) -> dict[str, Any]:
    name = case["method"] if isinstance(case["method"], str) else case["method"]["name"]
    replay = {"replay": REPLAY} if get_method(name).keeps else {}
    return PLAIN_SGD | replay | {"per_device_train_batch_size": batch} | case


def curves(folder: Path) -> dict[str, list[float]]:
    """Every number of every line of both tasks' logs, by name."""
    found: dict[str, list[float]] = {}
    for task in ("m1", "m2"):
        for line in json.loads((folder / task / "training_log.json").read_text()):
            for key, value in line.items():
                if key.startswith(("loss", "grad_norm", "share_", "weight_")):
                    found.setdefault(f"{task}/{key}", []).append(value)
    return found


def assert_same_curves(left: dict[str, list[float]], right: dict[str, list[float]], factor: float = 1.0) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        others = right[name]
        assert len(values) == len(others) > 0
        apart = [(one - other) / max(1.0, abs(one)) for one, other in zip(values, others)]
        assert max(map(abs, apart)) <= factor * LARGEST, f"{name}: {apart}"
        assert abs(sum(apart)) / len(apart) <= factor * MEAN, f"{name}: {apart}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_two_processes_are_one(bases: dict[str, Path], two: Pair, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    learn_two(bases["llama"], tmp_path / "one", WORDS, settings_of(case, 4))
    assert two.ask(bases["llama"], tmp_path / "two", WORDS, settings_of(case, 2)) == ["", ""]
    factor = ROWS.get(name, ROWS["seekr"]).tolerance
    assert_same_curves(curves(tmp_path / "one"), curves(tmp_path / "two"), factor)
    one, both = (weights(tmp_path / folder / "m2") for folder in ("one", "two"))
    assert differs(one, weights(bases["llama"]))
    assert_same(one, both, factor * 2e-6)
    assert_same(memory_tensors(tmp_path / "one/memory"), memory_tensors(tmp_path / "two/memory"), factor * 2e-5)

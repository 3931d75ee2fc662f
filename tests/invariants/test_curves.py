"""Every case's losses, gradient norms and shares are what they were when they were put on record.

So nobody changes a method's numbers without knowing. Where a change is meant, record the case again.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from recorded import RECORDED, Tolerance, curves, differences, read_record, record_of

from cases import CASES, tolerance_of

COMMAND = "python recipes/record_curves.py"
TOLERANCE = Tolerance(largest=3e-4, mean=1e-4, scale=1e-3)
"""Several times what another processor makes of the same code (kernels for SSE4 against those for AVX-512: 7e-5 at one
line, 2e-5 in the mean; threads do not matter at these sizes), and a third of a loss that is wrong by a thousandth."""


def test_every_case_has_a_record() -> None:
    missing = [name for name in CASES if not record_of(name).exists()]
    assert not missing, f"no recorded curve of {', '.join(missing)}: commit, run '{COMMAND}', commit what it wrote"
    left_over = {path.stem for path in RECORDED.glob("*.json")} - set(CASES)
    assert not left_over, f"records of no case: run '{COMMAND}'"


@pytest.mark.parametrize("name", [name for name in CASES if record_of(name).exists()])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_curves_are_those_on_record(one: Callable[[str], Path], name: str) -> None:
    record = read_record(name)
    found = differences(record.pop("curves"), curves(one(name)), TOLERANCE, tolerance_of(name))
    here = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
    assert not found, f"{found}\nrecorded with {record}, here {here}; if it is meant to change: {COMMAND} {name}"


SAME = {"seekr-checkpointed": "seekr"}
"""Checkpointing changes nothing."""


def test_no_case_is_another_one() -> None:
    """A method that found nothing to do in its case would be plain fine-tuning or replay under another name."""
    seen: dict[str, str] = {}
    for name in CASES:
        if name not in SAME:
            other = seen.setdefault(json.dumps(read_record(name)["curves"]), name)
            assert other == name, f"{name} and {other} have the same curves"


@pytest.mark.parametrize(
    "changed",
    [[1.0, 2.001], [1.00025, 2.0005], [1.0], [1.0, float("nan")], None],
    ids=["a step", "a drift", "shorter", "no number", "missing"],
)
def test_a_difference_is_found(changed: list[float] | None) -> None:
    recorded = {"loss": [1.0, 2.0]}
    assert not differences(recorded, {"loss": [1.00025, 1.9995]}, TOLERANCE)
    assert differences(recorded, {} if changed is None else {"loss": changed}, TOLERANCE)

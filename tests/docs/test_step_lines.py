"""How much of the library runs in one replay step, which is what a newcomer has to read to follow it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILES, LINES = 20, 850
"""At most; of SEEKR's step, in which everything happens that does in other methods' steps."""


@pytest.fixture(scope="module")
def counting() -> Any:
    path = Path(__file__).resolve().parents[2] / "recipes" / "step_lines.py"
    spec = importlib.util.spec_from_file_location("step_lines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_seekr_step_can_be_read(counting: Any, tmp_path: Path) -> None:
    ran = counting.replay_step("seekr", tmp_path)
    names = {name for _, name, _ in counting.functions_of(ran)}
    # What happens in the data loader, before, in, and after the forward pass.
    assert {"Seekr.collate_replay", "Seekr.replay_loss", "RowKL.backward", "Seekr.after_step"} <= names
    found = counting.count(ran)
    assert found.files <= FILES, found
    assert found.lines <= LINES, found


def test_other_methods_do_not_pay_for_it(counting: Any, tmp_path: Path) -> None:
    ran = counting.replay_step("replay", tmp_path)
    assert not [file for file, _, _ in counting.functions_of(ran) if file.startswith(("attention/", "methods/seekr"))]
    assert counting.count(ran).lines < LINES / 2

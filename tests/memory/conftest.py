"""A memory to damage."""

from pathlib import Path

import pytest
from made_memory import commit, make_task

from seekr_cl.memory import ReplayMemory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two generations of one task each."""
    memory = ReplayMemory(tmp_path / "memory")
    commit(memory, make_task("first"), model="m1")
    commit(memory, make_task("second", 2), model="m2")
    return tmp_path / "memory"

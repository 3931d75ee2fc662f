"""What all tests share: one tiny model, and a garbage collector that does not walk the imported libraries."""

import gc
import os
from pathlib import Path

import pytest

SLOW = {
    "invariants": {"test_invariants", "test_curves", "test_deepspeed", "test_processes", "test_compiled"},
    "cli": {
        "test_bad_input",
        "test_launch",
        "test_forgotten_everywhere",
        "test_permissions",
        "test_signals",
        "test_syscall_faults",
        "test_real_disks",
        "test_foreign_files",
        "test_evaluate_together",
    },
    "training": {"test_interrupted", "test_kill"},
    "evaluation": {"test_general", "test_together"},
    "demo": {"test_demo"},
    "memory": {"test_damage", "test_upkeep", "test_fuzz", "test_failed_write"},
    "tasks": {"test_fuzzed_files"},
    "attention": {"test_architectures", "test_kernels"},
    "methods": {"test_matrix"},
    "docs": {"test_readme", "test_site"},
}
"""Files of tests that start processes, kill them, go through every method or family, or run for minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make check` leaves out."""
    for item in items:
        if item.path.stem in SLOW.get(item.path.parent.name, ()):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Takes everything imported so far out of the collector's sight.

    transformers' Trainer collects garbage at the end of each training; over half a million objects of torch and
    transformers that took three quarters of a tiny training's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tinylm import save_base

    return save_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("SEEKR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set SEEKR_SHARED to the folder with the real data")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, where ``recipes/smollm2.py`` has put it."""
    folder = Path(os.environ.get("SEEKR_SMOLLM2", Path(__file__).resolve().parents[1] / ".venv" / "smollm2"))
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is absent; make it with recipes/smollm2.py, or set SEEKR_SMOLLM2 to a folder with it")
    return folder

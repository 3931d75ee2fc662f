"""What all tests share: one tiny model, and a garbage collector that does not walk the imported libraries."""

import gc
import os
from pathlib import Path

import pytest

SLOW = frozenset(
    [
        "invariants/test_processes",
        "invariants/test_deepspeed",
        "invariants/test_compiled",
        "invariants/test_curves",
        "invariants/test_invariants",
        "cli/test_launch",
        "cli/test_evaluate_together",
        "cli/test_signals",
        "cli/test_real_disks",
        "cli/test_foreign_files",
        "cli/test_forgotten_everywhere",
        "cli/test_permissions",
        "cli/test_syscall_faults",
        "cli/test_bad_input",
        "training/test_kill",
        "training/test_interrupted",
        "evaluation/test_together",
        "evaluation/test_general",
        "demo/test_demo",
        "memory/test_damage",
        "memory/test_fuzz",
        "memory/test_failed_write",
        "memory/test_upkeep",
        "tasks/test_fuzzed_files",
        "attention/test_kernels",
        "attention/test_architectures",
        "methods/test_matrix",
        "docs/test_readme",
    ]
)
"""Files of tests that start processes, kill them, go through every method or family, or run for minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make check` leaves out."""
    for item in items:
        if f"{item.path.parent.name}/{item.path.stem}" in SLOW:
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

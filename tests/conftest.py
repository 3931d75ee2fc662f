"""What all tests share: one tiny model, and a garbage collector that does not walk the imported libraries."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW = {
    "invariants": {"test_invariants", "test_curves", "test_deepspeed", "test_processes", "test_compiled", "test_gpu"},
    "report": {"test_report_browser"},
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
    "training": {"test_interrupted", "test_kill", "test_no_dead_options"},
    "evaluation": {"test_general", "test_together"},
    "demo": {"test_demo"},
    "memory": {"test_damage", "test_upkeep", "test_fuzz", "test_failed_write"},
    "tasks": {"test_fuzzed_files"},
    "attention": {"test_architectures", "test_compile", "test_kernels", "test_liger_terms"},
    "methods": {"test_matrix", "test_learning"},
    "docs": {"test_readme", "test_blocks", "test_site"},
}
"""Files of tests that start processes, kill them, compile, go through all methods or families, or run what is real."""

FIRST = (
    {"invariants": ("test_processes", "test_curves", "test_compiled", "test_invariants", "test_gpu")},
    {
        "cli": ("test_launch", "test_evaluate_together"),
        "invariants": ("test_deepspeed",),
        "demo": ("test_demo",),
        "benchmarks": ("test_throughput",),
        "attention": ("test_kernels", "test_compile", "test_liger_terms"),
        "training": ("test_kill",),
    },
)
"""The longest, for each of two workers: what is left to be shared out in the end are small ones."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make check` leaves out, and puts the longest at the beginning of each worker's half."""
    halves: list[list[pytest.Item]] = [[], []]
    others = []
    for item in items:
        folder, file = item.path.parent.name, item.path.stem
        if file in SLOW.get(folder, ()):
            item.add_marker("slow")
        half = next((half for half, first in zip(halves, FIRST) if file in first.get(folder, ())), others)
        half.append(item)
    room = max(0, len(items) // 2 - len(halves[0]))
    items[:] = [*halves[0], *others[:room], *halves[1], *others[room:]]


# Nothing here sees a power cut, which is all that it is for; a tiny training waits for the disk sixty times.
os.fsync = lambda file: None


def pytest_collection_finish() -> None:
    """Takes everything imported so far out of the collector's sight.

    transformers' Trainer collects garbage twice in each training; over half a million objects of torch and transformers
    that took three quarters of a tiny training's time.
    """
    from repeated import remember

    remember()
    gc.collect()
    gc.freeze()


_run: list[Path] = []
"""The files of the last tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """The same with what tests have imported since, between two files, and in a long one now and then.

    A hundred thousand objects of compilers and plots took a third of each of the next files' trainings.
    """
    if _run[-1:] != [item.path] or len(_run) == 25:
        _run.clear()
        gc.collect()
        gc.freeze()
    _run.append(item.path)


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


@pytest.fixture(autouse=True)
def no_precision_left_behind() -> Iterator[None]:
    """What a training in half precision leaves in accelerate's state: methods asked without a Trainer compute in it."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        state.AcceleratorState._reset_state()

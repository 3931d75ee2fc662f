"""What all tests share: one tiny model, and a garbage collector that does not walk the imported libraries."""

import gc
import os
from pathlib import Path

import pytest


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

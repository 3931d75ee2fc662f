"""What all tests share: one tiny model, and a garbage collector that does not walk the imported libraries."""

import gc
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

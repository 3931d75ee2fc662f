"""The tiny model of the training tests serves here too."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "training"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    from tinylm import save_base

    return save_base(tmp_path_factory.mktemp("planned") / "llama")

"""One tiny model for all tests of training."""

from pathlib import Path

import pytest
from tinylm import save_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "llama")

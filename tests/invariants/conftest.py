"""Tiny models of two families; the helpers are those of the training tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pair import learn_two
from tinylm import save_base

from cases import CASES, settings_of, words_of


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in ("llama", "qwen3")}


@pytest.fixture(scope="session")
def one(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A case learned in one process, once."""
    done: dict[str, Path] = {}

    def learnt(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("one")
            learn_two(bases["llama"], done[name], words_of(name), settings_of(CASES[name], 4))
        return done[name]

    return learnt

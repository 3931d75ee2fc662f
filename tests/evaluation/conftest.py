"""Models that really generate, as fixtures."""

from collections.abc import Callable

import pytest
from generating import Pair, random_model, stories


@pytest.fixture
def make_model() -> Callable[[str], Pair]:
    """A model and its tokenizer by family; ``stories260K`` is the trained one."""
    return lambda family: stories() if family == "stories260K" else random_model(family)


@pytest.fixture(params=["llama", "qwen3", "gpt_neox", "stories260K"])
def pair(request: pytest.FixtureRequest, make_model: Callable[[str], Pair]) -> Pair:
    return make_model(request.param)

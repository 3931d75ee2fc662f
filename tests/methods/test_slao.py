"""SLAO's two ends of a task against its formulas, over three tasks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinylm import config_for, constant_task, save_base
from torch import Tensor

from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.slao import orthonormal
from seekr_cl.training import learn


def test_the_basis_is_orthonormal_and_of_the_same_span() -> None:
    torch.manual_seed(0)
    down = torch.randn(3, 7)
    found = orthonormal(down)
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(down @ found.T @ found, down, atol=1e-5, rtol=0)
    # Gram and Schmidt would go the same way, not its reverse.
    assert bool(((found * down).sum(1)[0] > 0).item())
    torch.testing.assert_close(orthonormal(found), found, atol=1e-6, rtol=0)


def parts(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {name: name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors}
    return tuple({names[n]: t for n, t in tensors.items() if f".lora_{letter}." in n} for letter in "AB")  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_task_begins_and_ends_as_the_formulas_say(tmp_path: Path) -> None:
    base, memory = save_base(tmp_path / "base"), tmp_path / "memory"
    source, merged, left = base, dict[str, Tensor](), dict[str, Tensor]()
    down: dict[str, Tensor] = {}
    for number, answer in enumerate(("yes", "no", "ah"), start=1):
        # In the last task nothing is learned, so that it ends where it has begun.
        rate = 0.03 if number < 3 else 0.0
        config = config_for({"name": "slao", "rank": 2, "dropout": 0.0}, tmp_path, learning_rate=rate)
        learn(source, constant_task(answer, answer, 8), memory, tmp_path / f"m{number}", config)
        source = tmp_path / f"m{number}"
        new_down, new_merged = parts(source)
        state: Any = ReplayMemory.open(memory).method_state
        trained = dict(state.tensors)
        assert state.content["tasks"] == number
        for layer, up in trained.items():
            expected = up if number == 1 else merged[layer] + (up - merged[layer]) / math.sqrt(number)
            torch.testing.assert_close(new_merged[layer], expected, atol=1e-6, rtol=0)
            if number == 3:
                torch.testing.assert_close(new_down[layer], orthonormal(down[layer]), atol=1e-6, rtol=0)
                torch.testing.assert_close(up, left[layer])
        down, merged, left = new_down, new_merged, trained
    with pytest.raises(MemoryFormatError, match="slao: the memory does not carry on the adapter"):
        learn(tmp_path / "m1", constant_task("x", "x", 4), tmp_path / "other", tmp_path / "n", config)
    other = config_for({"name": "slao", "rank": 4, "dropout": 0.0}, tmp_path)
    with pytest.raises(ConfigError, match=r"method\.rank: 4, but the model comes with an adapter of rank 2"):
        learn(source, constant_task("x", "x", 4), memory, tmp_path / "n", other)

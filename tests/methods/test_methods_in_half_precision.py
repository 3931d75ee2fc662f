"""What methods add to a step in bfloat16: in mixed precision without clipping, and with weights of half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinylm import config_for, constant_task, differs, reverse_task, teach, weights

from seekr_cl.memory import ReplayMemory

NAMES = ["ewc", "lwf", "agem", "gem", "ogd", "rwalk"]
TASKS = [constant_task("yes", "yes"), reverse_task(count=8)]
COMMON: dict[str, Any] = {
    "learning_rate": 0.01, "num_train_epochs": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
}  # fmt: skip
# Whoever writes gradients or sums them up over steps, also with weights of half precision.
CASES = [(name, "mixed") for name in NAMES] + [(name, "half") for name in ("gem", "ogd", "rwalk")]
PRECISIONS = {"mixed": {"bf16": True, "max_grad_norm": 0.0}, "half": {"dtype": "bfloat16", "max_grad_norm": 1.0}}
SETTINGS: dict[str, dict[str, Any]] = {"ewc": {"strength": 300.0}, "ogd": {"directions": 4}, "rwalk": {"interval": 3}}


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain fine-tuning in the same precisions."""
    folders = {precision: tmp_path_factory.mktemp(precision) for precision in PRECISIONS}
    for precision, folder in folders.items():
        teach(base, folder, TASKS, config_for("seqft", folder, **COMMON, **PRECISIONS[precision]))
    return folders


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_it_learns_and_differs_in_half_precision(
    base: Path, plain: dict[str, Path], tmp_path: Path, name: str, precision: str
) -> None:
    config = config_for({"name": name, **SETTINGS.get(name, {})}, tmp_path, **COMMON, **PRECISIONS[precision])
    first, _ = teach(base, tmp_path, TASKS, config)
    losses = [line["loss_task"] for line in first.log if "loss_task" in line]
    assert losses[-1] < 0.3 * losses[0]
    assert differs(weights(plain[precision] / "m2"), weights(tmp_path / "m2"))
    dtype = torch.bfloat16 if precision == "half" else torch.float32
    assert {tensor.dtype for tensor in weights(tmp_path / "m2").values()} == {dtype}
    state = ReplayMemory.open(tmp_path / "memory").method_state
    carried = {} if state is None else dict(state.tensors)
    assert all(tensor.isfinite().all() for tensor in carried.values())
    # Squares and sums of many steps do not fit into eight bits.
    assert all(tensor.dtype == torch.float32 for tensor in carried.values())

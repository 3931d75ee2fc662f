"""OSFT leaves what the largest singular directions do to an input and give as an output as it was."""

from pathlib import Path

import torch
from tinylm import PLAIN_SGD, config_for, reverse_task, teach, weights


def test_a_step_is_orthogonal_to_the_large_directions(base: Path, tmp_path: Path) -> None:
    """One step of plain gradient descent: dW keeps away from the left and right singular vectors that are preserved."""
    # A whole batch and one epoch is one step; Adam's scaling of each number would turn the projected direction.
    config = config_for(
        {"name": "osft", "preserved": 0.5}, tmp_path, **PLAIN_SGD, per_device_train_batch_size=12, max_grad_norm=0.1
    )
    assert teach(base, tmp_path, [reverse_task()], config)[0].steps == 1
    before, after = weights(base), weights(tmp_path / "m1")
    moved = 0
    for name, weight in before.items():
        if weight.dim() != 2 or "embed" in name or "lm_head" in name:
            assert torch.equal(weight, after[name])
            continue
        left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
        kept = min(weight.shape) // 2
        change = after[name].double() - weight.double()
        # The first order in the step; both factors move, so their product has a second one.
        size = float(change.norm())
        assert float((left[:, :kept].T @ change).norm()) < 0.02 * size
        assert float((change @ right[:kept].T).norm()) < 0.02 * size
        moved += size > 1e-5
    assert moved >= 14

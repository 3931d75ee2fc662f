"""OSFT leaves what the largest singular directions do to an input and give as an output as it was."""

from pathlib import Path

import torch
from one_step import Twin, plain_steps, words_of
from tinylm import PLAIN_SGD, config_for, differs, reverse_task, teach, weights


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
            assert not torch.equal(weight, after[name])
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


def free(name: str) -> bool:
    """What is no linear layer of a block."""
    return "norm" in name or "embed" in name or "lm_head" in name


def test_what_is_not_decomposed_goes_along_its_whole_gradient(base: Path, tmp_path: Path) -> None:
    """The official code leaves embeddings, norms and the output layer trainable: W - rate g, by the loss in float64."""
    task = reverse_task("words", 4)
    teach(base, tmp_path, [task], plain_steps("osft", tmp_path))
    twin, before, after = Twin(base), weights(base), weights(tmp_path / "m1")
    gradient = twin.loss_gradient(words_of(task))
    at = 0
    for name, weight in twin.model.named_parameters():
        expected = gradient[at : at + weight.numel()].view_as(weight)
        at += weight.numel()
        if free(name):
            moved = (before[name].double() - after[name].double()) / PLAIN_SGD["learning_rate"]
            assert float((moved - expected).norm()) < 2e-3 * float(expected.norm()), name


def test_they_stay_where_they_are_if_asked(base: Path, tmp_path: Path) -> None:
    teach(base, tmp_path, [reverse_task()], config_for({"name": "osft", "others": "frozen"}, tmp_path))
    before, after = weights(base), weights(tmp_path / "m1")
    kept = {name: weight for name, weight in before.items() if free(name)}
    assert len(kept) == 7
    assert not differs(kept, {name: after[name] for name in kept})

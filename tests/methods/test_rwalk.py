"""RWalk: two tasks of plain descent against the same walk gone once more in float64, step by step.

The walk is written from the paper's definitions over one vector of weights. The official code (facebookresearch/agem,
TensorFlow) was read for what the paper leaves open: negative falls of an interval count as zero, both measures are
brought to [0, 1] over all weights, epsilon and the interval. It differs from the paper, and so from this, in two
places: it leaves out the 1/2 before the distance, and adds the mean of old and new score to the old.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import RATE, Twin, assert_near, plain_steps, words_of
from tinylm import constant_task, reverse_task, teach, weights
from torch import Tensor

from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.rwalk import unit_range

TASKS = [reverse_task("first", 4), constant_task("no", "no", 4)]
STRENGTH, ALPHA, INTERVAL, EPSILON = 8.0, 0.7, 2, 1e-3
STEPS = 3
"""A whole interval and one that the task's end cuts short; the penalty is strong enough to make some losses rise."""


def ranged(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


def walk(base: Path, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    twin = Twin(base)
    fisher: Tensor | None = None
    score: Tensor | None = None
    hold, anchor = torch.zeros(()), torch.zeros(())
    for task in TASKS:
        path, count = torch.zeros_like(twin.vector()), 0
        for step in range(1, STEPS + 1):
            if count == 0:
                start, fall, square = twin.vector(), torch.zeros_like(path), torch.zeros_like(path)
            before, gradient = twin.vector(), twin.loss_gradient(words_of(task))
            whole = gradient + 2 * STRENGTH * hold * (before - anchor)
            if clip:
                whole = whole * min(1.0, clip / float(whole.norm()))
            twin.step(-RATE * whole)
            fall += -gradient * (twin.vector() - before)
            square += gradient**2
            count += 1
            if count == INTERVAL or step == STEPS:
                now = square / count
                fisher = now if fisher is None else ALPHA * now + (1 - ALPHA) * fisher
                gain = fall / (fisher * (twin.vector() - start) ** 2 / 2 + EPSILON)
                path, count = path + torch.where(gain > 0, gain, torch.zeros_like(gain)), 0
        score = path if score is None else 0.5 * (score + path)
        hold, anchor = ranged(fisher) + ranged(score), twin.vector()
    return twin.vector(), {"fisher": fisher, "score": score, "anchor": anchor}


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_walk_and_its_penalty_are_the_papers(base: Path, tmp_path: Path, clip: float) -> None:
    settings: dict[str, Any] = {"strength": STRENGTH, "alpha": ALPHA, "interval": INTERVAL, "epsilon": EPSILON}
    config = plain_steps({"name": "rwalk", **settings}, tmp_path, num_train_epochs=STEPS, max_grad_norm=clip)
    first, second = teach(base, tmp_path, TASKS, config)
    end, carried = walk(base, clip)
    twin, start = Twin(base), weights(tmp_path / "m1")
    assert_near(twin.flat(weights(tmp_path / "m2")) - twin.flat(start), end - twin.flat(start))
    state = ReplayMemory.open(tmp_path / "memory").method_state.tensors
    for kind, expected in carried.items():
        assert_near(twin.flat({name: state[f"{kind}/{name}"] for name in twin.names}), expected)
    assert not any("loss_penalty" in line for line in first.log)
    penalties = [line["loss_penalty"] for line in second.log if "loss_penalty" in line]
    assert penalties[0] == 0
    assert penalties[-1] > 0


def test_measures_that_are_all_the_same_hold_nothing() -> None:
    same = unit_range({"a": torch.full((2,), 3.0), "b": torch.full((1,), 3.0)})
    assert all(not tensor.any() for tensor in same.values())
    found = unit_range({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])})
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), torch.tensor([0.0, 0.25, 1.0]))

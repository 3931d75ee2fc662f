"""Distances between tasks, and what they make of the schedule."""

import collections
import itertools

import pytest
import torch

from seekr_cl.replay.config import ReplayConfig
from seekr_cl.replay.schedule import build_schedule
from seekr_cl.replay.selection.similarity import similarity_weights, wasserstein


def points(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows)


def test_distances_that_are_known():
    one = points((0, 0), (1, 0), (0, 2))
    shift = torch.tensor([3.0, 4.0])
    assert wasserstein(one, one + shift) == pytest.approx(5, rel=5e-3)
    assert wasserstein(one[:1], one) == pytest.approx(1)  # (0 + 1 + 2) / 3: there is one plan
    assert wasserstein(one, one[[2, 0, 1]]) < 0.05  # the order of samples is none
    assert wasserstein(one[:1], one[:1]) == 0
    assert wasserstein(one, one + shift) == pytest.approx(wasserstein(one + shift, one))


def test_close_to_the_best_assignment():
    """Of equally many points the true distance is the cheapest of all permutations."""
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn((5, 3), generator=draw), torch.randn((5, 3), generator=draw) + 1
    cost = torch.cdist(left, right)
    best = min(float(cost[range(5), list(order)].mean()) for order in itertools.permutations(range(5)))
    assert best <= wasserstein(left, right) * (1 + 1e-6)
    assert wasserstein(left, right) == pytest.approx(best, rel=0.05)


def test_a_task_unlike_the_new_one_comes_more_often():
    new = points((0.0, 0.0), (0.1, 0.0))
    near, far = new + 1, new + 3
    shares = similarity_weights([near, far], new)
    assert shares == pytest.approx([0.25, 0.75], rel=1e-3)
    assert similarity_weights([new[:1], new[:1]], new[:1]) == [0.5, 0.5]


def batches(weights, rounds: int = 50, batch: int = 3, joint: bool = False) -> list[tuple[int, ...]]:
    schedule = build_schedule(
        epochs_of=[1.0] * (rounds * 10), num_replay=10, batch_size=1, replay_batch_size=batch,
        cadence=ReplayConfig(every=1), seed=5, joint=joint, replay_weights=weights,
    )  # fmt: skip
    return [micro.replay for micro in schedule if micro.replay]


def draws(weights, joint: bool = False) -> list[int]:
    return [index for drawn in batches(weights, joint=joint) for index in drawn]


@pytest.mark.parametrize("joint", [False, True])
def test_draws_follow_the_weights(joint):
    weights = [0.25 / 5] * 5 + [0.75 / 5] * 5
    counts = collections.Counter(draws(weights, joint=joint))
    total = sum(counts.values())
    for index, weight in enumerate(weights):
        assert counts[index] / total == pytest.approx(weight, abs=0.004)
    assert draws(weights) == draws(weights)


def test_equal_weights_change_nothing_but_the_source():
    assert sorted(draws([1.0] * 10)[:10]) == list(range(10))
    assert draws([1.0] * 10) == draws(None)


def test_no_weight_is_never_drawn_and_rounds_keep_their_size():
    found = draws([0.0, *[1.0] * 9])
    assert 0 not in found
    assert len(found) == len(draws(None))
    # What comes twice in a round does not come twice in a batch.
    heavy = batches([2.0, *[1.0] * 9], batch=4)
    assert max(sum(drawn.count(0) for drawn in heavy[start : start + 3]) for start in range(0, 300, 3)) == 2
    assert max(drawn.count(0) for drawn in heavy) == 1

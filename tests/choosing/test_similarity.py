"""Distances between tasks, and what they make of the schedule."""

import collections
import itertools

import pytest
import torch

from seekr_cl.replay.replay_config import ReplayConfig
from seekr_cl.replay.schedule import build_schedule
from seekr_cl.replay.selection.similarity import similarity_weights, wasserstein


def points(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows)


def cosine_cost(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """1 - cos of every pair, one by one in float64."""
    cost = torch.zeros(len(left), len(right), dtype=torch.float64)
    for i, one in enumerate(left.double()):
        for j, other in enumerate(right.double()):
            cost[i, j] = 1 - float(one @ other) / (float(one @ one) * float(other @ other)) ** 0.5
    return cost


def test_distances_that_are_known():
    east, north, west = points((3, 0), (0, 0.5), (-2, 0))
    assert wasserstein(east[None], north[None]) == pytest.approx(1)
    assert wasserstein(east[None], west[None]) == pytest.approx(2)
    assert wasserstein(east[None], torch.stack([east, north, west])) == pytest.approx(1)  # there is one plan
    both = torch.stack([east, north])
    assert wasserstein(both, both[[1, 0]]) < 0.05  # the order of samples is none
    assert wasserstein(both, 7 * both) < 0.05  # nor is their length anything
    assert wasserstein(east[None], east[None]) == pytest.approx(0, abs=1e-12)
    assert wasserstein(both, west[None]) == pytest.approx(wasserstein(west[None], both))


def test_close_to_the_best_assignment():
    """Of equally many points the true distance is the cheapest of all permutations."""
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn((5, 3), generator=draw), torch.randn((5, 3), generator=draw) + 1
    cost = cosine_cost(left, right)
    best = min(float(cost[range(5), list(order)].mean()) for order in itertools.permutations(range(5)))
    assert best <= wasserstein(left, right) * (1 + 1e-6)
    assert wasserstein(left, right) == pytest.approx(best, rel=0.05)


def test_a_task_unlike_the_new_one_comes_more_often():
    """By direction, as in InsCL's code: a task whose features are only longer is no farther away."""
    new = points((1.0, 0.0))
    near, far = points((10.0, 10.0)), points((0.0, 1.0))
    distances = [float(cosine_cost(one, new)[0, 0]) for one in (near, far)]
    shares = similarity_weights([near, far], new)
    assert shares == pytest.approx([one / sum(distances) for one in distances])
    assert shares[1] > 0.7  # Euclidean distances would turn it round: 13.5 against 1.4
    assert similarity_weights([new, 3 * new], new) == [0.5, 0.5]


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

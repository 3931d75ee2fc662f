"""Budgets, and the queries that are drawn under one."""

import pytest
import torch

from seekr_cl.errors import ConfigError
from seekr_cl.heads import draw_queries, resolve_budget


def resolve(budget, available=20):
    said = []
    return resolve_budget("method.head_budget", budget, available, said.append), said


@pytest.mark.parametrize(
    ("budget", "count"), [(None, 20), (7, 7), (20, 20), (0, 0), (0.25, 5), (1.0, 20), (0.0, 0), (0.5, 10)]
)
def test_counts_and_fractions(budget, count):
    assert resolve(budget) == (count, [])


def test_a_small_fraction_is_at_least_one():
    assert resolve(0.001)[0] == 1


def test_whole_number_one_is_a_count_and_one_point_nought_is_all():
    assert resolve(1)[0] == 1
    assert resolve(1.0)[0] == 20


def test_too_large_is_clamped_with_a_message():
    count, said = resolve(21)
    assert count == 20
    assert len(said) == 1
    assert "method.head_budget" in said[0]
    assert "21" in said[0]
    assert "20" in said[0]


@pytest.mark.parametrize("budget", [-1, -0.5, 1.5, True, "12", [3], float("nan")])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ConfigError, match=r"method\.head_budget"):
        resolve(budget)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("replacement", [False, True])
def test_all_queries_without_a_budget(replacement):
    assert draw_queries(6, None, generator(), replacement).tolist() == list(range(6))


def test_short_samples_give_all_their_queries_once():
    for budget in (6, 7, 100):
        assert draw_queries(6, budget, generator()).tolist() == list(range(6))


def test_without_replacement_queries_are_different_and_sorted():
    for seed in range(20):
        drawn = draw_queries(30, 9, generator(seed)).tolist()
        assert drawn == sorted(set(drawn))
        assert len(drawn) == 9
        assert 0 <= drawn[0] <= drawn[-1] < 30


def test_with_replacement_short_samples_repeat():
    drawn = draw_queries(5, 12, generator(), replacement=True)
    assert drawn.shape == (12,)
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) <= set(range(5))
    assert len(set(drawn.tolist())) < 12


@pytest.mark.parametrize("length", [12, 30])
def test_with_replacement_long_samples_do_not_repeat(length):
    drawn = draw_queries(length, 12, generator(), replacement=True).tolist()
    assert len(set(drawn)) == 12


@pytest.mark.parametrize(("length", "budget", "replacement"), [(30, 9, False), (30, 9, True), (5, 12, True)])
def test_the_generator_decides(length, budget, replacement):
    torch.manual_seed(1)
    one = draw_queries(length, budget, generator(3), replacement)
    torch.manual_seed(2)
    assert torch.equal(one, draw_queries(length, budget, generator(3), replacement))
    assert not torch.equal(one, draw_queries(length, budget, generator(4), replacement))


def test_every_position_is_as_likely():
    source = generator(5)
    counts = torch.zeros(10)
    for _ in range(3000):
        counts[draw_queries(10, 3, source)] += 1
    assert ((counts / 3000 - 0.3).abs() < 0.05).all()

"""Which heads are chosen, and how importance adds up over tasks."""

import pytest
import torch

from seekr_cl.heads import HeadImportance, all_heads, normalise_within_layers, random_heads, select_heads

LAYERS = (0, 1, 2)
# Row sums 6, 9, 4; the single largest value stands in the row with the smallest sum.
SCORES = torch.tensor([[3.0, 2.0, 1.0], [4.0, 4.5, 0.5], [9.9, -3.0, -2.9]])


@pytest.mark.parametrize(
    ("layer_budget", "head_budget", "expected"),
    [
        (1, 1, {1: [1]}),
        (1, 3, {1: [0, 1, 2]}),
        (2, 1, {1: [1]}),
        (2, 3, {0: [0], 1: [0, 1]}),
        (3, 1, {2: [0]}),
        (3, 3, {1: [0, 1], 2: [0]}),
        (3, 9, {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}),
        (50, 100, {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}),
        (0, 3, {}),
        (3, 0, {}),
    ],
)
def test_layers_first_then_heads(layer_budget, head_budget, expected):
    assert select_heads(SCORES, LAYERS, layer_budget, head_budget) == expected


def test_layers_keep_their_own_index():
    assert select_heads(SCORES, (3, 7, 11), 2, 3) == {3: [0], 7: [0, 1]}


def test_a_layer_without_a_head_is_left_out():
    scores = torch.tensor([[9.0, 8.0], [1.0, 1.5]])
    assert select_heads(scores, (0, 1), 2, 2) == {0: [0, 1]}


def test_random_heads_are_seeded_and_keep_the_budgets():
    heads = {0: 4, 2: 4, 5: 2, 6: 4}

    def draw(seed):
        return random_heads(heads, 3, 5, torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1)
    assert len({str(draw(seed)) for seed in range(10)}) > 1
    for seed in range(30):
        chosen = draw(seed)
        assert len(chosen) <= 3
        assert sum(map(len, chosen.values())) == 5
        assert all(max(found) < heads[layer] for layer, found in chosen.items())


def test_random_heads_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_heads({0: 4}, 1, 2, torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(3), expected)


def test_missing_heads_are_never_chosen_at_random():
    """Two layers of unequal width: a budget for all heads takes those that exist and no other."""
    heads = {0: 4, 1: 1}
    chosen = random_heads(heads, 2, 5, torch.Generator().manual_seed(0))
    assert chosen == all_heads(heads) == {0: [0, 1, 2, 3], 1: [0]}


def test_missing_heads_are_never_chosen_by_importance():
    importance = HeadImportance.zeros({0: 3, 1: 1}).add(torch.tensor([[0.5, 0.5, 0], [1, 0, 0]]), torch.ones(2, 3))
    for rule in ("product_of_sums", "sum_of_products"):
        assert select_heads(importance.scores(rule), importance.layers, 2, 3) == {0: [0, 1], 1: [0]}


def test_importance_rules():
    S = [torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])]
    F = [torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0, 3.0]])]
    total = HeadImportance.zeros({4: 2})
    for s, f in zip(S, F):
        former, total = total, total.add(s, f)
    assert total.layers == (4,)
    torch.testing.assert_close(total.scores("sum_of_products"), S[0] * F[0] + S[1] * F[1])
    torch.testing.assert_close(total.scores(), (S[0] + S[1]) * (F[0] + F[1]))
    torch.testing.assert_close(former.scores(), former.scores("sum_of_products"))
    torch.testing.assert_close(former.product_NH, S[0] * F[0])


def test_normalisation_within_layers():
    found = normalise_within_layers(torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]]))
    assert found.tolist() == [[0.25, 0.75], [0.0, 0.0], [0.5, 0.5]]

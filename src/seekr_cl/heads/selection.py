"""Choosing the heads and queries to distil under a budget (eq. 11).

Shapes: N tappable layers, H query heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from seekr_cl.errors import ConfigError

Budget = int | float | None
Warn = Callable[[str], None]


def resolve_budget(name: str, budget: Budget, available: int, warn: Warn) -> int:
    """A budget as a count, clamped to what the model has.

    Args:
        name: the config key, for messages.
        budget: a count (int), a fraction in (0, 1] (float), or ``None`` for all.
        available: the most there can be.
        warn: gets a sentence when the budget had to be clamped or rounds to nothing.

    Raises:
        ConfigError: for a negative budget or a fraction above one.
    """
    if budget is None:
        return available
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ConfigError(f"{name}: {budget!r} is not a budget; give a count (12), a fraction (0.25) or null for all")
    if not budget >= 0:
        raise ConfigError(f"{name}: {budget} is negative; give a count (12), a fraction (0.25) or null for all")
    if isinstance(budget, float):
        if budget > 1:
            raise ConfigError(f"{name}: the fraction {budget} is above 1; write a count as a whole number")
        budget = max(1, round(budget * available)) if budget > 0 else 0
    if budget > available:
        warn(f"{name}: {budget} is more than the model has, using all {available}")
        return available
    return budget


def select_heads(
    importance_NH: Tensor, layers: tuple[int, ...], layer_budget: int, head_budget: int
) -> dict[int, list[int]]:
    """The most important heads of the most important layers.

    First the ``layer_budget`` layers with the largest sum over their heads, then the ``head_budget`` largest heads
    over all heads of those layers together, so a chosen layer may end up with no head.

    Args:
        importance_NH: importance, or any other score.
        layers: the model's layer index of each row.
        layer_budget: B_L.
        head_budget: B_H.

    Returns:
        ``{layer: sorted heads}`` without empty layers.
    """
    rows = torch.topk(importance_NH.sum(1), min(layer_budget, len(layers))).indices.sort().values
    inside_MH = importance_NH[rows]
    flat = torch.topk(inside_MH.flatten(), min(head_budget, inside_MH.numel())).indices
    return _as_dict(rows[flat // inside_MH.shape[1]], flat % inside_MH.shape[1], layers)


def random_heads(
    heads: dict[int, int], layer_budget: int, head_budget: int, generator: torch.Generator
) -> dict[int, list[int]]:
    """Random heads of random layers under the same budgets, the paper's ablation."""
    scores = torch.rand((len(heads), max(heads.values())), generator=generator)
    present = torch.arange(scores.shape[1]) < torch.tensor(list(heads.values()))[:, None]
    return select_heads(scores * present, tuple(heads), layer_budget, head_budget)


def all_heads(heads: dict[int, int]) -> dict[int, list[int]]:
    """Every head of every tappable layer."""
    return {layer: list(range(count)) for layer, count in heads.items()}


def draw_queries(length: int, budget: int | None, generator: torch.Generator, replacement: bool = False) -> Tensor:
    """Query positions of one sample, counted from its first real token.

    Args:
        length: the sample's tokens.
        budget: B_T; ``None`` or more than ``length`` takes them all.
        generator: source of the draw.
        replacement: the official code's way when the sample is shorter than the budget.

    Returns:
        int64 [R]; sorted when drawn without replacement.
    """
    if budget is None or (budget >= length and not replacement):
        return torch.arange(length)
    if budget > length:
        return torch.randint(length, (budget,), generator=generator)
    drawn = torch.randperm(length, generator=generator)[:budget]
    return drawn if replacement else drawn.sort().values


def _as_dict(row_K: Tensor, head_K: Tensor, layers: tuple[int, ...]) -> dict[int, list[int]]:
    chosen: dict[int, list[int]] = {}
    for row, head in sorted(zip(row_K.tolist(), head_K.tolist())):
        chosen.setdefault(layers[row], []).append(head)
    return chosen

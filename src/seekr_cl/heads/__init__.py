"""Which attention heads matter and which are distilled: importance, budgets, selection."""

from seekr_cl.heads.importance import HeadImportance, normalise_within_layers
from seekr_cl.heads.selection import all_heads, draw_queries, random_heads, resolve_budget, select_heads

__all__ = [
    "HeadImportance",
    "all_heads",
    "draw_queries",
    "normalise_within_layers",
    "random_heads",
    "resolve_budget",
    "select_heads",
]

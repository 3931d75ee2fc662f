"""Continual-learning methods: the contract, the registry, and one file a method."""

from seekr_cl.methods.base import Context, Layout, LossTerm, Method, Paper, TaskResult
from seekr_cl.methods.config import MethodConfig
from seekr_cl.methods.registry import METHODS, get_method, register_method

__all__ = [
    "METHODS",
    "Context",
    "Layout",
    "LossTerm",
    "Method",
    "MethodConfig",
    "Paper",
    "TaskResult",
    "get_method",
    "register_method",
]

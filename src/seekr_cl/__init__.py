"""SEEKR continual learning for Hugging Face causal language models.

``learn`` teaches a model one ``Task``, ``evaluate`` scores it, ``run`` does both over a stream of tasks; a
``ReplayMemory`` lives on between them. ``SeekrConfig`` is transformers' ``TrainingArguments`` with the settings of
continual learning; ``register_method`` makes a ``Method`` of your own known by its name.

The heavy parts are imported on first use, so that ``seekr --help`` answers at once.
"""

from importlib import import_module
from typing import Any

from seekr_cl.errors import (
    ConfigError,
    DataError,
    MemoryFormatError,
    ModelError,
    OutputError,
    SeekrError,
    TrainingError,
)
from seekr_cl.version import __version__

_PLACES = {
    "METHODS": "seekr_cl.methods.registry",
    "Context": "seekr_cl.methods.base",
    "Example": "seekr_cl.tasks.task",
    "LossTerm": "seekr_cl.methods.base",
    "MemoryConfig": "seekr_cl.memory.config",
    "Method": "seekr_cl.methods.base",
    "Paper": "seekr_cl.methods.base",
    "ReplayConfig": "seekr_cl.replay.config",
    "ReplayMemory": "seekr_cl.memory.store",
    "ScoreMatrix": "seekr_cl.evaluation.scores",
    "SeekrConfig": "seekr_cl.config.seekr_config",
    "Settings": "seekr_cl.settings",
    "Stream": "seekr_cl.tasks.stream",
    "TaskResult": "seekr_cl.methods.base",
    "Task": "seekr_cl.tasks.task",
    "evaluate": "seekr_cl.evaluation.api",
    "learn": "seekr_cl.training.learn",
    "load_model": "seekr_cl.models.loading",
    "register_method": "seekr_cl.methods.registry",
    "run": "seekr_cl.runs.stream_run",
}

__all__ = [
    "METHODS",
    "ConfigError",
    "Context",
    "DataError",
    "Example",
    "LossTerm",
    "MemoryConfig",
    "MemoryFormatError",
    "Method",
    "ModelError",
    "OutputError",
    "Paper",
    "ReplayConfig",
    "ReplayMemory",
    "ScoreMatrix",
    "SeekrConfig",
    "SeekrError",
    "Settings",
    "Stream",
    "Task",
    "TaskResult",
    "TrainingError",
    "__version__",
    "evaluate",
    "learn",
    "load_model",
    "register_method",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'seekr_cl' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """The public names, those that are not imported yet among them."""
    return sorted(__all__)

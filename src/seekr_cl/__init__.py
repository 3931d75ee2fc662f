"""SEEKR continual learning for Hugging Face causal language models.

The API in the shape the ecosystem knows: ``SeekrConfig`` is a ``TrainingArguments``, ``SeekrTrainer`` a ``Trainer``;
``learn`` teaches one ``Task``, ``run`` a ``Stream`` of them, and a ``ReplayMemory`` lives on between them.

The heavy parts are imported on first use, so that ``seekr --help`` answers at once.
"""

from importlib import import_module
from typing import Any

from seekr_cl.errors import SeekrError
from seekr_cl.version import __version__

_PLACES = {
    "SeekrConfig": "seekr_cl.training",
    "SeekrTrainer": "seekr_cl.training",
    "learn": "seekr_cl.training",
    "run": "seekr_cl.runs.stream_run",
    "load_model": "seekr_cl.models.loading",
    "ReplayMemory": "seekr_cl.memory",
    "Task": "seekr_cl.tasks",
    "Stream": "seekr_cl.tasks",
    "ScoreMatrix": "seekr_cl.evaluation",
    "METHODS": "seekr_cl.methods",
}

__all__ = [
    "METHODS",
    "ReplayMemory",
    "ScoreMatrix",
    "SeekrConfig",
    "SeekrError",
    "SeekrTrainer",
    "Stream",
    "Task",
    "__version__",
    "learn",
    "load_model",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'seekr_cl' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)

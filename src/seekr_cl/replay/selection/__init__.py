"""Choosing what to keep of a task, and how often each old task comes back.

A new choice implements one function and adds one line here: it takes ``Candidates`` and returns the indices of
``candidates.count`` different examples, best first, so that a memory that has to shrink drops the last ones. It is
deterministic in ``candidates.seed``. ``docs/choosing.md`` compares the choices.
"""

from collections.abc import Callable

from seekr_cl.replay.selection.by_model import by_herding, by_loss
from seekr_cl.replay.selection.by_text import balanced, first, random
from seekr_cl.replay.selection.candidates import Candidates
from seekr_cl.replay.selection.informative import information
from seekr_cl.replay.selection.similarity import similarity_weights

Choose = Callable[[Candidates], list[int]]

CHOICES: dict[str, Choose] = {
    "random": random,
    "first": first,
    "balanced": balanced,
    "herding": by_herding,
    "loss": by_loss,
}

UNRANKED = ("random",)
"""Choices whose result is in the data's order and says nothing of which sample is worth more."""

BY_MODEL = ("herding", "loss")
"""Choices that run the model over every example."""

AFTER_TRAINING = ("herding",)
"""Choices that ask the model that has learned the task, unless the method looks at the kept samples before that."""

__all__ = [
    "AFTER_TRAINING",
    "BY_MODEL",
    "CHOICES",
    "UNRANKED",
    "Candidates",
    "Choose",
    "information",
    "similarity_weights",
]

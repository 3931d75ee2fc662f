"""What a method needs beside the model, its optimizer and the samples, said before anything is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

FLOAT = 4
"""Bytes of a float32 number, in which methods keep what they know of weights."""
FORWARD, FORWARD_FROZEN = 1 / 3, 1 / 2
"""Of a pass forward and backward, what a pass forward takes: all weights trained; the model's frozen, whose gradients
are not computed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a method's costs grow with.

    Attributes:
        weights: numbers that are trained.
        width: bytes of one of them.
        hidden: components of a token's embedding.
        examples: training examples of each task, in order.
        kept: samples that the memory keeps of each.
        steps: optimizer steps of each, those of replay apart.
        trained: passes over the examples of each.
        replayed: passes over replayed samples, in all tasks.
        tokens: of an example.
        answer: tokens of it that are to be answered.
        context: longest sequence of the model, if its config says so.
        forward: of a pass forward and backward, what a pass forward takes.
        outputs: bytes of one sample's outputs over the whole vocabulary, as signals are kept.
        build: makes the model without storage.
        heads: attention heads that are chosen for a task.
        size: components of a head's output.
    """

    weights: int
    width: int
    hidden: int
    examples: Sequence[int]
    kept: Sequence[int]
    steps: Sequence[int]
    trained: Sequence[int]
    replayed: int
    tokens: int
    answer: int
    context: int | None
    forward: float
    outputs: int
    build: Callable[[], Any]
    heads: int = 0
    size: int = 0

    @property
    def number(self) -> int:
        """How many tasks there are."""
        return len(self.examples)

    @property
    def later(self) -> bool:
        """Whether a task comes after the first."""
        return self.number > 1


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a method needs.

    Attributes:
        device: bytes on the device, at most, in a step of the last task; a task's end may take more for a moment.
        ram: bytes in RAM meanwhile; on a CPU what is on the device too is there once.
        carried: bytes that the memory carries beside samples after the last task.
        written: bytes of the adapter that is written after the last task in place of a model.
        virtual: tokens that stand before every example of the last task.
        passes: of an example, forward and backward, in all tasks, beside those of new examples, replay and scoring.
        texts: at most, that the model writes in all tasks.
        positions: tokens that go forward for these at most, prompts among them; not in ``passes``.
    """

    device: int = 0
    ram: int = 0
    carried: int = 0
    written: int = 0
    virtual: int = 0
    passes: float = 0.0
    texts: int = 0
    positions: int = 0


def written_positions(scale: Scale, prompt: int, new: int) -> int:
    """Tokens that go forward, with a cache, for a text of at most so many new ones: the last of them no longer does."""
    room = new if scale.context is None else min(new, scale.context - prompt)
    return prompt + room - 1 if room > 0 else 0


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])

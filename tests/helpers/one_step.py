"""What the tests of single steps share: losses written down once more, in float64, and steps of plain descent."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tinylm import PLAIN_SGD, char_tokenizer, config_for, weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from seekr_cl.memory import MemoryTask
from seekr_cl.tasks import Encoder, Task
from seekr_cl.training import SeekrConfig

RATE = PLAIN_SGD["learning_rate"]
Words = tuple[list[int], int]
"""Token ids, and where the answer begins."""


def plain_steps(method: Any, folder: Path, **settings: Any) -> SeekrConfig:
    """Gradient descent whose steps show the gradient: no momentum, no clipping, all four examples in each batch."""
    return config_for(method, folder, **(PLAIN_SGD | {"max_grad_norm": 0.0, "replay": None} | settings))


def words_of(source: Task | MemoryTask) -> list[Words]:
    """The encoded training examples of a task, or what the memory keeps of one."""
    if isinstance(source, MemoryTask):
        return [(sample.ids_L.tolist(), sample.completion_start) for sample in source.samples]
    encoder = Encoder(char_tokenizer(), 64)
    return [(one.input_ids, one.completion_start) for one in map(encoder.encode, source.train)]


class Twin:
    """A saved model in float64; its weights are one vector."""

    def __init__(self, folder: Path) -> None:
        self.model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.names = [name for name, _ in self.model.named_parameters()]

    def vector(self) -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in self.model.parameters()])

    def flat(self, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].double().flatten() for name in self.names])

    def step(self, change: Tensor) -> None:
        torch.nn.utils.vector_to_parameters(self.vector() + change, self.model.parameters())

    def answers(self, words: Sequence[Words]) -> list[tuple[Tensor, Tensor]]:
        """For each example the logits [A, V] that predict its answer, and the answer [A]."""
        found = []
        for ids, start in words:
            logits_LV = self.model(input_ids=torch.tensor([ids])).logits[0]
            found.append((logits_LV[start - 1 : len(ids) - 1], torch.tensor(ids[start:])))
        return found

    def gradient(self, value: Callable[["Twin"], Tensor]) -> Tensor:
        found = torch.autograd.grad(value(self), list(self.model.parameters()))
        return torch.cat([part.flatten() for part in found])

    def loss_gradient(self, words: Sequence[Words]) -> Tensor:
        return self.gradient(lambda twin: token_loss(twin.answers(words)))


def token_loss(answers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """-log p of the answer, a mean over all tokens."""
    each = [-logits.log_softmax(-1)[torch.arange(len(answer)), answer] for logits, answer in answers]
    return torch.cat(each).mean()


def moved(before: Path, after: Path) -> Tensor:
    """The gradient that a single step of plain descent went along."""
    one, other, twin = weights(before), weights(after), Twin(before)
    return (twin.flat(one) - twin.flat(other)) / RATE


def assert_near(found: Tensor, expected: Tensor, rel: float = 1e-3) -> None:
    """Within ``rel`` of the expected vector's length: a step in float32 rounds each weight."""
    assert float((found - expected).norm()) < rel * float(expected.norm())

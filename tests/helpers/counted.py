"""A stream of three tasks, what the plan says of it, and what really goes through a model's first layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tinylm import reverse_task, teach
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from seekr_cl.planning import Plan, Workload, adapter_size, make_plan, read_shape

LETTERS = 12
TOKENS, ANSWER = 2 * LETTERS + 2, LETTERS + 1
EXAMPLES = [4, 3, 5]
EPOCHS = 2
LORA = {"peft_type": "LORA", "r": 3, "target_modules": "all-linear"}


UNPROBED: dict[str, Any] = {"retention": {"samples": 0}}
"""The verdict's looks at the memory's own samples are in no plan."""


def learnt(base: Any, folder: Any, config: Any, letters: int = LETTERS) -> None:
    """The tasks, one after the other."""
    teach(base, folder, [reverse_task(f"t{n}", count=n, length=letters) for n in EXAMPLES], config)


def planned(base: Any, config: Any, letters: int = LETTERS) -> Plan:
    """What the plan says of the same."""
    work = Workload(EXAMPLES, [float(EPOCHS)] * len(EXAMPLES), 2 * letters + 2, letters + 1)
    return make_plan(read_shape(base), config, work, adapter_size(base, config.peft))


@dataclass
class Positions:
    """Positions that went through the first layer of any model, copies too.

    Attributes:
        learnt: forward and backward.
        asked: forward alone.
        widths: of the passes forward and backward, in order.
    """

    learnt: int = 0
    asked: int = 0
    widths: list[int] = field(default_factory=list)

    def passes(self, forward: float) -> float:
        """As passes of an example, of which one forward is so much."""
        return (self.learnt + forward * self.asked) / TOKENS


@contextmanager
def counted_positions() -> Iterator[Positions]:
    """Counts while it is open."""
    found = Positions()

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.self_attn.layer_idx == 0:
            rows, width = given[0].shape[:2]
            if torch.is_grad_enabled():
                found.learnt += rows * width
                found.widths.append(width)
            else:
                found.asked += rows * width

    handle = register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()


def watch_positions(model: Any, sizes: list[int]) -> None:
    """Notes how many positions a model's head makes logits of, each time, also outside of the model's own pass."""
    head = model.get_output_embeddings()
    forward = head.forward

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(hidden.shape[:-1].numel())
        return forward(hidden)

    head.forward = watched

"""What a choice may look at, and what a model says about an example.

Shapes: L tokens of an example, D hidden size, N examples.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seekr_cl.methods.common.sample_passes import PASS_TOKENS, SamplePass, losses_of, padded, similar_batches
from seekr_cl.tasks import Encoded

Counting = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display from a label and a total; what it yields is told of every few that are done."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """A task's training examples, of which some are to be kept.

    Attributes:
        count: how many to keep, at most ``len(encoded)``.
        completions: each example's completion as text.
        encoded: each example's tokens.
        model: the model, in evaluation mode; before the task, or after it for ``AFTER_TRAINING``.
        seed: for everything that is drawn.
        counting: opens a progress display.
        say: for a sentence about how the choice was made.
    """

    count: int
    completions: list[str]
    encoded: list[Encoded]
    model: PreTrainedModel
    seed: int
    counting: Counting
    say: Callable[[str], None]


@torch.no_grad()
def mean_hidden(model: PreTrainedModel, ids: Sequence[Sequence[int]], advance: Callable[[int], None]) -> Tensor:
    """Last hidden states, averaged over each example's tokens: float32 [N, D] on the CPU.

    Examples of similar length go together; each one's feature is that of its own tokens.

    Args:
        model: a causal language model; its vocabulary product is computed for one position, where it allows that.
        ids: the examples' tokens, at least one each.
        advance: told after every few examples how many.
    """
    bare: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    hidden: list[Tensor] = []
    features: dict[int, Tensor] = {}

    def take(_module: Any, _given: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)

    # Not its body alone: what a sharded model gathers for a pass, it lets go at the end of the whole.
    handle = bare.base_model.register_forward_hook(take)
    try:
        for places in similar_batches(list(map(len, ids)), model, PASS_TOKENS):
            batch = [torch.tensor(list(ids[place])) for place in places]
            if hasattr(model, "ask"):
                # Adapters that are weighted by the query have to be told which tokens it is.
                model.ask(padded(batch).to(model.device), None, None)  # type: ignore[operator]
            SamplePass(bare, batch, [len(one) - 1 for one in batch])
            for place, row_LD in zip(places, hidden.pop()):
                # Virtual tokens of a prompt, if there are any, count as the example's own.
                own = len(row_LD) - max(map(len, batch)) + len(ids[place])
                features[place] = row_LD[:own].float().mean(0).cpu()
            advance(len(places))
    finally:
        handle.remove()
    return torch.stack([features[place] for place in range(len(ids))])


def answer_loss(model: PreTrainedModel, encoded: Sequence[Encoded], advance: Callable[[int], None]) -> Tensor:
    """Each example's mean cross entropy over its completion's tokens: float32 [N] on the CPU."""
    losses: dict[int, Tensor] = {}
    for places in similar_batches([len(one.input_ids) for one in encoded], model, PASS_TOKENS):
        batch = [encoded[place] for place in places]
        ids = [torch.tensor(one.input_ids) for one in batch]
        for place, loss_A in zip(places, losses_of(model, ids, [one.spans for one in batch])):
            losses[place] = loss_A.mean().nan_to_num(0.0)
        advance(len(places))
    return torch.stack([losses[place] for place in range(len(encoded))])

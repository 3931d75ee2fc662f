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

from seekr_cl.methods.common.logit_distillation import answer_logits
from seekr_cl.tasks import Encoded
from seekr_cl.tasks.collate import labels_of

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

    One example at a time, so that no feature depends on padding.

    Args:
        model: a causal language model; its vocabulary product is computed for one position, where it allows that.
        ids: the examples' tokens, at least one each.
        advance: told after each example.
    """
    bare: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    features: list[Tensor] = []

    def take(_module: Any, _given: Any, output: Any) -> None:
        features.append(output.last_hidden_state[0].float().mean(0).cpu())

    # Not its body alone: what a sharded model gathers for a pass, it lets go at the end of the whole.
    handle = bare.base_model.register_forward_hook(take)
    try:
        for one in ids:
            ids_1L = torch.tensor([list(one)], device=model.device)
            if hasattr(model, "ask"):
                # Adapters that are weighted by the query have to be told which tokens it is.
                model.ask(ids_1L, None, None)  # type: ignore[operator]
            answer_logits(bare, ids_1L, len(one) - 1)
            advance(1)
    finally:
        handle.remove()
    return torch.stack(features)


@torch.no_grad()
def answer_loss(model: PreTrainedModel, encoded: Sequence[Encoded], advance: Callable[[int], None]) -> Tensor:
    """Each example's mean cross entropy over its completion's tokens: float32 [N] on the CPU."""
    losses = []
    for one in encoded:
        first = max(1, one.spans[0][0])  # nothing stands before a sample's first token to predict it from
        labels = labels_of(one.input_ids, one.spans)[first:]
        labels_A = torch.tensor(labels, dtype=torch.long, device=model.device)
        ids_1L = torch.tensor([one.input_ids], device=model.device)
        logits_AV = answer_logits(model, ids_1L, first - 1)[:-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits_AV, labels_A).nan_to_num(0.0).cpu())
        advance(1)
    return torch.stack(losses)

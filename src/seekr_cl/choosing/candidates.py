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

from seekr_cl.methods.logits import answer_logits
from seekr_cl.shards import is_sharded
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
        model: the model as it is before the task, in evaluation mode.
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
        model: a causal language model; its vocabulary product is not computed.
        ids: the examples' tokens, at least one each.
        advance: told after each example.
    """
    bare: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    features = []
    for one in ids:
        ids_1L = torch.tensor([list(one)], device=model.device)
        hidden_1LD = _last_hidden(model, bare.base_model, ids_1L)
        features.append(hidden_1LD[0].float().mean(0).cpu())
        advance(1)
    return torch.stack(features)


@torch.no_grad()
def answer_loss(model: PreTrainedModel, encoded: Sequence[Encoded], advance: Callable[[int], None]) -> Tensor:
    """Each example's mean cross entropy over its completion's tokens: float32 [N] on the CPU."""
    losses = []
    for one in encoded:
        first = max(1, one.completion_start)  # nothing stands before a sample's first token to predict it from
        labels_A = torch.tensor(one.input_ids[first:], dtype=torch.long, device=model.device)
        ids_1L = torch.tensor([one.input_ids], device=model.device)
        logits_AV = answer_logits(model, ids_1L, first - 1)[:-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits_AV, labels_A).nan_to_num(0.0).cpu())
        advance(1)
    return torch.stack(losses)


def _last_hidden(model: PreTrainedModel, body: Any, ids_1L: Tensor) -> Tensor:
    if not any(map(is_sharded, model.parameters())):
        return body(input_ids=ids_1L, use_cache=False).last_hidden_state
    # What is gathered for a pass is let go at the end of the whole model's.
    seen: list[Tensor] = []
    handle = body.register_forward_hook(lambda _module, _given, output: seen.append(output.last_hidden_state))
    try:
        answer_logits(model, ids_1L, ids_1L.shape[1] - 1)
    finally:
        handle.remove()
    return seen[0]

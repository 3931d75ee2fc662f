"""Passes over kept samples and candidates: several of similar length at a time, each measured as if it were alone.

Padding stands on the right and no mask is given: causal layers of all kinds see it after every token of a sample, so
that a sample's numbers differ from those of a pass of its own by rounding alone.

Shapes: B batch, L padded length, V vocabulary, N positions in use, C of them in one chunk, A tokens of an answer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seekr_cl.evaluation.batches import token_batches
from seekr_cl.methods.answers import label_losses, predicting
from seekr_cl.methods.base import Batch, ask
from seekr_cl.methods.common.logit_distillation import can_keep
from seekr_cl.tasks.collate import IGNORE, Spans

PASS_TOKENS = 2048
"""Tokens of a batch with its padding; a longer sample goes alone."""
_SIMILAR = 0.75
"""The shortest sample of a batch has at least this share of the longest one's tokens."""


def similar_batches(lengths: Sequence[int], model: Any, tokens: int = PASS_TOKENS) -> list[list[int]]:
    """Places of samples, batch by batch, the longest first; every process finds the same.

    Args:
        lengths: tokens of each sample.
        model: one that looks at the whole text before it answers is asked about one sample at a time.
        tokens: the most of a batch.
    """
    together = not (getattr(model, "query_conditioned", False) or hasattr(model, "ask"))
    batches: list[list[int]] = []
    for batch in token_batches(lengths, 0, tokens, None if together else 1):
        batches.append([])
        for place in batch:
            if batches[-1] and lengths[place] < _SIMILAR * lengths[batches[-1][0]]:
                batches.append([])
            batches[-1].append(place)
    return batches


def padded(ids: Sequence[Tensor], pad_id: int = 0) -> Tensor:
    """Token ids [B, L] with padding on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=pad_id)


def logits_from(model: Any, ids: Sequence[Tensor], firsts: Sequence[int], **more: Any) -> list[Tensor]:
    """The logits [L - first, V] of each sample's positions from its ``first`` on.

    Models that can leave out the vocabulary product for what all prompts have in common are told to.

    Args:
        model: a causal language model.
        ids: each sample's tokens.
        firsts: the first position of each that is wanted.
        more: for the model.
    """
    ids_BL = padded(ids).to(model.device)
    length = ids_BL.shape[1]
    keep = {"logits_to_keep": length - min(firsts)} if can_keep(model) else {}
    logits_BNV = model(input_ids=ids_BL, use_cache=False, **keep, **more).logits
    # Virtual tokens of a prompt stand before the first one, and some models give fewer positions than they were asked.
    before = length - logits_BNV.shape[1]
    return [row_NV[first - before : len(one) - before] for row_NV, one, first in zip(logits_BNV, ids, firsts)]


def sample_batch(model: Any, ids: Sequence[Tensor], spans: Sequence[Spans]) -> Batch:
    """Samples that go together, with the tokens in ``spans`` as labels; for ``run_unmasked``."""
    ids_BL = padded(ids).to(model.device)
    labels_BL = torch.full_like(ids_BL, IGNORE)
    for row, own in enumerate(spans):
        for begin, end in own:
            labels_BL[row, begin:end] = ids_BL[row, begin:end]
    return {"input_ids": ids_BL, "labels": labels_BL}


def run_unmasked(model: Any, batch: Batch) -> Any:
    """A model's output for a batch whose padding stands on the right."""
    more = {}
    if getattr(model, "query_conditioned", False):
        more["query_mask"] = (batch["labels"] != IGNORE).cumsum(1) == 0
    return model(input_ids=batch["input_ids"], use_cache=False, **more)


@torch.no_grad()
def losses_of(model: Any, ids: Sequence[Tensor], spans: Sequence[Spans]) -> list[Tensor]:
    """The negative log-probability of each token in a sample's ``spans``, [A] on the CPU, of samples that go together.

    A first token of all, which nothing stands before, has none.
    """
    batch = sample_batch(model, ids, spans)
    keep_BL, labels_BL = predicting(batch["labels"]), batch["labels"]

    def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
        return [label_losses(logits_CV, place_C, labels_BL)]

    (loss_N,) = ask(model, batch, keep_BL, values, run_unmasked)
    return list(loss_N.cpu().split(keep_BL.sum(1).tolist()))


def answer_losses(model: Any, ids: Sequence[Tensor], spans: Sequence[Spans]) -> list[Tensor]:
    """``losses_of`` any number of samples, those of similar length together."""
    found: dict[int, Tensor] = {}
    for places in similar_batches([len(one) for one in ids], model):
        found |= zip(places, losses_of(model, [ids[place] for place in places], [spans[place] for place in places]))
    return [found[place] for place in range(len(ids))]

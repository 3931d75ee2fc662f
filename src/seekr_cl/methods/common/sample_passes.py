"""Passes over kept samples and candidates: several of similar length at a time, each measured as if it were alone.

Padding stands on the right and no mask is given: causal layers of all kinds see it after every token of a sample, so
that a sample's numbers differ from those of a pass of its own by rounding alone.

Shapes: B batch, L padded length, V vocabulary, N positions in use, C of them in one chunk, A tokens of an answer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from seekr_cl.evaluation.batches import token_batches
from seekr_cl.methods.answers import label_losses, predicting
from seekr_cl.methods.base import Batch, ask
from seekr_cl.methods.common.former_model import kept_outputs
from seekr_cl.methods.common.logit_distillation import Said, chunks
from seekr_cl.tasks.collate import IGNORE, Spans, labels_of

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


class SamplePass:
    """Runs samples of similar length together, for the logits of each one's positions from some first one on.

    Args:
        model: a causal language model.
        ids: each sample's tokens.
        firsts: the first position of each that is wanted.
        laid_out: the tokens [1, L] of the only sample with padding of another kind, their mask, and where it begins.
    """

    def __init__(
        self,
        model: Any,
        ids: Sequence[Tensor],
        firsts: Sequence[int],
        laid_out: tuple[Tensor, Tensor, int] | None = None,
    ) -> None:
        start, batch = 0, Batch()
        if laid_out is None:
            batch["input_ids"] = padded(ids).to(model.device)
        else:
            batch["input_ids"], batch["attention_mask"], start = laid_out
        keep_BL = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for row, (one, first) in enumerate(zip(ids, firsts)):
            keep_BL[row, start + first : start + len(one)] = True
        self._source_NX, self._read = kept_outputs(model, batch, keep_BL, run_unmasked)
        self._ids, self._firsts = list(ids), list(firsts)
        self._sizes = [len(one) - first for one, first in zip(ids, firsts)]

    def said(self, row: int) -> Said:
        """What gives the logits [C, V] at some positions of a sample, without gradient."""
        own_NX, first = self._source_NX.detach().split(self._sizes)[row], self._firsts[row]

        @torch.no_grad()
        def said(position_C: Tensor) -> Tensor:
            return self._read(own_NX[position_C.to(own_NX.device) - first])

        return said

    def backward(self, spans: Sequence[Spans]) -> None:
        """The backward pass of the sum over samples of the mean cross entropy of the tokens in their ``spans``."""
        device, vocabulary = self._source_NX.device, self._read(self._source_NX.detach()[:1]).shape[-1]
        parts = zip(self._source_NX.detach().split(self._sizes), self._firsts, spans, self._ids)
        grads = []
        for whole_NX, first, learnt, ids_L in parts:
            own_NX = whole_NX.detach().requires_grad_()
            place_A = torch.cat([torch.arange(max(1, begin), end) for begin, end in learnt])
            for part_C in chunks(place_A, vocabulary):
                logits_CV = self._read(own_NX[(part_C - 1 - first).to(device)])
                loss = F.cross_entropy(logits_CV.float(), ids_L[part_C].to(device), reduction="sum")
                (loss / max(1, len(place_A))).backward()
            grads.append(torch.zeros_like(own_NX) if own_NX.grad is None else own_NX.grad)
        self._source_NX.backward(torch.cat(grads))


def sample_batch(model: Any, ids: Sequence[Tensor], spans: Sequence[Spans]) -> Batch:
    """Samples that go together, with the tokens in ``spans`` as labels; for ``run_unmasked``."""
    labels = [torch.tensor(labels_of(one.tolist(), own)) for one, own in zip(ids, spans)]
    return {"input_ids": padded(ids).to(model.device), "labels": padded(labels, IGNORE).to(model.device)}


def run_unmasked(model: Any, batch: Batch) -> Any:
    """A model's output for a batch whose padding stands on the right, or that brings a mask."""
    more = {}
    if getattr(model, "query_conditioned", False) and "labels" in batch:
        more["query_mask"] = (batch["labels"] != IGNORE).cumsum(1) == 0
    if "attention_mask" in batch:
        more["attention_mask"] = batch["attention_mask"]
    return model(input_ids=batch["input_ids"], use_cache=False, **more)


@torch.no_grad()
def losses_of(
    model: Any, ids: Sequence[Tensor], spans: Sequence[Spans], run: Callable[[Any, Batch], Any] = run_unmasked
) -> list[Tensor]:
    """The negative log-probability of each token in a sample's ``spans``, [A] on the CPU, of samples that go together.

    A first token of all, which nothing stands before, has none. ``run`` makes the model's output for the batch.
    """
    batch = sample_batch(model, ids, spans)
    keep_BL, labels_BL = predicting(batch["labels"]), batch["labels"]

    def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
        return [label_losses(logits_CV, place_C, labels_BL)]

    (loss_N,) = ask(model, batch, keep_BL, values, run)
    return list(loss_N.cpu().split(keep_BL.sum(1).tolist()))


def answer_losses(model: Any, ids: Sequence[Tensor], spans: Sequence[Spans]) -> list[Tensor]:
    """``losses_of`` any number of samples, those of similar length together."""
    found: dict[int, Tensor] = {}
    for places in similar_batches([len(one) for one in ids], model):
        found |= zip(places, losses_of(model, [ids[place] for place in places], [spans[place] for place in places]))
    return [found[place] for place in range(len(ids))]

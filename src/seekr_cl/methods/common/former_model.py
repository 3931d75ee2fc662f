"""The earlier model's outputs on a batch beside the labels, from a frozen copy that is held beside the trained model.

Shapes: B batch, L padded length, V vocabulary, N positions in use, C of them in one chunk.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seekr_cl.methods.answers import AnswerHead, predicting
from seekr_cl.methods.base import Batch, LossTerm, ask, run, token_values, weighted_term
from seekr_cl.methods.common.precision import training_precision
from seekr_cl.methods.losses import divergences
from seekr_cl.methods.task_loss import TaskLoss


def label_and_divergence_terms(
    loss: TaskLoss | None, model: Any, batch: Batch, teacher: Any, weight: float, temperature: float = 1.0
) -> tuple[LossTerm, LossTerm]:
    """The labels of a batch, and KL(teacher, model) of softened distributions: means over the labelled tokens.

    Args:
        loss: weights on the labels' loss, if there are any.
        model: that is trained.
        batch: as in ``Method.new_task_loss``.
        teacher: a frozen copy, which runs in the precision of training.
        weight: of the divergence.
        temperature: that both sides' logits are divided by.
    """
    labels_BL = batch["labels"]
    keep_BL = predicting(labels_BL)
    with torch.no_grad(), training_precision(labels_BL.device):
        said = later_logits(teacher, batch, keep_BL)

    def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
        with torch.no_grad():
            teacher_CV = said(place_C)
        return [*token_values(loss, logits_CV, place_C, labels_BL), divergences(teacher_CV, logits_CV, temperature)]

    *label, divergence_N = ask(model, batch, keep_BL, values)
    mean, count = divergence_N.sum() / max(1, len(divergence_N)), torch.tensor(len(divergence_N))
    return weighted_term(loss, batch, label), LossTerm(mean, weight, count)


def later_logits(model: Any, batch: Batch, keep_BL: Tensor) -> Callable[[Tensor], Tensor]:
    """Runs a model that no engine has wrapped; what comes back gives the logits [C, V] of some kept places.

    Many are made when they are asked for, so that they never exist at once.
    """
    source_NX, read = kept_outputs(model, batch, keep_BL)
    place_N = keep_BL.flatten().nonzero()[:, 0]
    return lambda place_C: read(source_NX[torch.searchsorted(place_N, place_C)])


def kept_outputs(
    model: Any, batch: Batch, keep_BL: Tensor, call: Callable[[Any, Batch], Any] = run
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Runs a model for its logits at some positions, and makes few of them at a time.

    Of a model that an engine has sharded all are made at once: after the pass its head is not whole.

    Returns:
        the logits [N, V] and a function that does nothing; where they are too many, the hidden states [N, D] and a
        function that makes logits [C, V] of some of them.
    """
    head, place_N = AnswerHead.of(model), keep_BL.flatten().nonzero()[:, 0]
    head.asked, head.held = (place_N, keep_BL.shape[1], None), None
    most, sharded = head.most, head.is_sharded()
    if sharded:
        head.most = math.inf
    try:
        said, held = call(model, batch).logits, head.held
    finally:
        head.asked = head.held = None
        if sharded:
            head.most = most
    if said.dim() == 3:
        return said[0], lambda logits_CV: logits_CV
    assert held is not None
    hidden_ND, precision = held
    return hidden_ND, lambda hidden_CD: head.logits(hidden_CD, precision)

"""The earlier model's outputs on a batch beside the labels, from a frozen copy that is held beside the trained model.

Shapes: B batch, L padded length, V vocabulary, N positions in use, C of them in one chunk.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from seekr_cl.methods.answers import AnswerHead, label_sum, predicting
from seekr_cl.methods.base import Batch, LossTerm, ask, run
from seekr_cl.methods.losses import divergence_sum


def label_and_divergence_terms(
    model: Any,
    batch: Batch,
    teacher: Any,
    weight: float,
    temperature: float = 1.0,
    precision: AbstractContextManager[Any] | None = None,
) -> tuple[LossTerm, LossTerm]:
    """The labels of a batch, and KL(teacher, model) of softened distributions: means over the labelled tokens.

    Args:
        model: that is trained.
        batch: as in ``Method.new_task_loss``.
        teacher: a frozen copy.
        weight: of the divergence.
        temperature: that both sides' logits are divided by.
        precision: in which the teacher runs.
    """
    labels_BL = batch["labels"]
    keep_BL = predicting(labels_BL)
    with torch.no_grad(), precision or nullcontext():
        said = later_logits(teacher, batch, keep_BL)

    def sums(logits_CV: Tensor, place_C: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teacher_CV = said(place_C)
        return label_sum(logits_CV, place_C, labels_BL), divergence_sum(teacher_CV, logits_CV, temperature)

    label, divergence = ask(model, batch, keep_BL, sums)
    count = keep_BL.sum()
    mean = divergence / count.clamp(min=1)
    return LossTerm(label / count.clamp(min=1), count=count), LossTerm(mean, weight, count)


def later_logits(model: Any, batch: Batch, keep_BL: Tensor) -> Callable[[Tensor], Tensor]:
    """Runs a model that no engine has wrapped; what comes back gives the logits [C, V] of some kept places.

    Many are made when they are asked for, so that they never exist at once.
    """
    head, place_N = AnswerHead.of(model), keep_BL.flatten().nonzero()[:, 0]
    head.asked, head.held = (place_N, keep_BL.shape[1], None), None
    try:
        said = run(model, batch).logits
    finally:
        head.asked = None
    if said.dim() == 3:
        return lambda place_C: said[0, torch.searchsorted(place_N, place_C)]
    assert head.held is not None
    hidden_ND, precision = head.held
    return lambda place_C: head.logits(hidden_ND[torch.searchsorted(place_N, place_C)], precision)

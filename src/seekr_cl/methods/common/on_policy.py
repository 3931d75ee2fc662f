"""What on-policy distillation shares: the model's own answers, and a teacher's divergence from it on them.

Shapes: B batch, L padded length, N answer positions of a batch, C of them in one chunk, V vocabulary, K likeliest
tokens of the teacher.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from seekr_cl.evaluation.generate import stop_ids
from seekr_cl.methods.answers import predicting
from seekr_cl.methods.base import Batch, Context, ask
from seekr_cl.methods.common.former_model import later_logits
from seekr_cl.methods.common.generation import write
from seekr_cl.methods.common.gradients import example_batch
from seekr_cl.methods.common.precision import training_precision
from seekr_cl.tasks import Encoded

Direction = Literal["forward", "reverse"]


def answers(
    context: Context, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int, temperature: float
) -> list[list[int]]:
    """What the model as it is now answers to prompts, the end of text included: token ids, none where there is no room.

    Args:
        context: the model, its tokenizer and padding.
        prompts: token ids, at least one each.
        max_new_tokens: where an answer is broken off.
        seed: of the draws.
        temperature: 0 takes the likeliest token.
    """
    assert context.tokenizer is not None
    ends = stop_ids(context.tokenizer, context.model.generation_config)
    pad = context.layout.pad_id
    return write(context.model, prompts, max_new_tokens, eos_id=ends, pad_id=pad, seed=seed, temperature=temperature)


def distil(
    context: Context,
    model: Any,
    teaching: Callable[[], AbstractContextManager[Any]],
    student: Sequence[Encoded],
    teacher: Sequence[Encoded],
    direction: Direction,
    top_k: int | None = None,
    skip: int = 0,
) -> tuple[Tensor, Tensor]:
    """The mean divergence over the tokens of answers, and over how many tokens it is a mean.

    Args:
        context: padding and device.
        model: the student, possibly wrapped.
        teaching: gives the teacher for the length of a ``with`` block; asked for once or more, before the backward
            pass and in it.
        student: each prompt with its answer.
        teacher: the same answers, after what the teacher is shown.
        direction: ``forward`` is KL(teacher, student), ``reverse`` KL(student, teacher).
        top_k: of the teacher's likeliest tokens each by itself, all others as one; default all tokens.
        skip: tokens at the beginning of each answer that are left out.
    """
    batch, shown = example_batch(context, student), example_batch(context, teacher)
    keep_BL, theirs_BL = _at_answers(batch["labels"], skip), _at_answers(shown["labels"], skip)
    place_N, their_N = (one_BL.flatten().nonzero()[:, 0] for one_BL in (keep_BL, theirs_BL))
    with torch.no_grad(), training_precision(context.model.device), teaching() as asked:
        said = later_logits(asked, shown, theirs_BL)

    def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
        # Row by row the same answers, whatever stands before them.
        with torch.no_grad(), teaching():
            teacher_CV = said(their_N[torch.searchsorted(place_N, place_C)]).float()
        return [divergence(teacher_CV, logits_CV.float(), direction, top_k)]

    (each_N,) = ask(model, batch, keep_BL, values)
    # Without a position the sum has a gradient of zero, which processes that wait for one get.
    return each_N.sum() / max(1, len(each_N)), torch.tensor(len(each_N))


def nothing(model: Any, batch: Batch) -> Tensor:
    """Zero, with a gradient of zero for all that the model computes with, without logits."""
    none_BL = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    (zero,) = ask(model, batch, none_BL, lambda logits_CV, _place_C: (logits_CV.sum() * 0.0,))
    return zero


def _at_answers(labels_BL: Tensor, skip: int) -> Tensor:
    """The positions [B, L] from which the answers' tokens are drawn, but for each answer's first."""
    answer_BL = predicting(labels_BL)
    return answer_BL & (answer_BL.cumsum(1) > skip)


def divergence(teacher_NV: Tensor, student_NV: Tensor, direction: Direction, top_k: int | None = None) -> Tensor:
    """KL of next-token distributions [N]; with ``top_k`` over its tokens and one for all others (a lower bound)."""
    logp_NV, logq_NV = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    if top_k is not None and top_k < logp_NV.shape[-1]:
        token_NK = logp_NV.topk(top_k, dim=-1).indices
        logp_NV, logq_NV = _bucketed(logp_NV, token_NK), _bucketed(logq_NV, token_NK)
    first, second = (logp_NV, logq_NV) if direction == "forward" else (logq_NV, logp_NV)
    return (first.exp() * (first - second)).sum(-1)


def _bucketed(logp_NV: Tensor, token_NK: Tensor) -> Tensor:
    """Log-probabilities of some tokens and of all others together, [N, K + 1]."""
    rest_N = logp_NV.scatter(-1, token_NK, torch.finfo(logp_NV.dtype).min).logsumexp(-1, keepdim=True)
    return torch.cat([logp_NV.gather(-1, token_NK), rest_N], dim=-1)

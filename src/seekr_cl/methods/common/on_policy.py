"""What on-policy distillation shares: the model's own answers, and a teacher's divergence from it on them.

Shapes: B batch, L padded length, N answer positions of a batch, V vocabulary, K likeliest tokens of the teacher.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from seekr_cl.evaluation.generate import stop_ids
from seekr_cl.methods.base import Context, forward
from seekr_cl.methods.common.generation import write
from seekr_cl.methods.common.gradients import example_batch
from seekr_cl.methods.common.precision import training_precision
from seekr_cl.tasks import Encoded
from seekr_cl.tasks.collate import IGNORE

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
    ask: Callable[[dict[str, Tensor]], Tensor],
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
        ask: gives the teacher's logits [B, L, V] of a batch, without gradient.
        student: each prompt with its answer.
        teacher: the same answers, after what the teacher is shown.
        direction: ``forward`` is KL(teacher, student), ``reverse`` KL(student, teacher).
        top_k: of the teacher's likeliest tokens each by itself, all others as one; default all tokens.
        skip: tokens at the beginning of each answer that are left out.
    """
    student_NV = _at_answers(example_batch(context, student), lambda batch: forward(model, batch), skip)
    with torch.no_grad(), training_precision(context.model.device):
        teacher_NV = _at_answers(example_batch(context, teacher), ask, skip)
    each_N = divergence(teacher_NV, student_NV, direction, top_k)
    # Without a position the sum has a gradient of zero, which processes that wait for one get.
    return each_N.sum() / max(1, len(each_N)), torch.tensor(len(each_N))


def _at_answers(batch: dict[str, Tensor], ask: Callable[[dict[str, Tensor]], Tensor], skip: int) -> Tensor:
    """Logits [N, V] from which the answers' tokens are drawn, row by row."""
    answer_BL = batch["labels"][:, 1:] != IGNORE
    if skip:
        answer_BL &= answer_BL.cumsum(1) > skip
    return ask(batch)[:, :-1][answer_BL].float()


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

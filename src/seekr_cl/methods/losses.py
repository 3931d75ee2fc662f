"""Losses over answer tokens.

Shapes: B batch, L padded length, V vocabulary, N positions in all.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from seekr_cl.tasks.collate import IGNORE


def causal_lm_loss(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean cross entropy of the labelled tokens, each predicted from the position before it (eq. 1 and 2)."""
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), labels_BL[:, 1:].flatten(), ignore_index=IGNORE)


def count_labels(labels_BL: Tensor) -> Tensor:
    """How many tokens ``causal_lm_loss`` is a mean of."""
    return (labels_BL[:, 1:] != IGNORE).sum()


def output_divergence(teacher_BLV: Tensor, student_BLV: Tensor, labels_BL: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL(teacher, student) of next-token distributions softened by a temperature, where an answer token comes.

    Returns:
        A scalar; 0 with gradient zero if no token is labelled.
    """
    answer_BL = labels_BL[:, 1:] != IGNORE
    each_N = divergences(teacher_BLV[:, :-1][answer_BL], student_BLV[:, :-1][answer_BL], temperature)
    return each_N.sum() / max(1, len(each_N))


def divergences(teacher_NV: Tensor, student_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher, student) [N] of distributions softened by a temperature."""
    logp_NV = (teacher_NV.float() / temperature).log_softmax(-1)
    logq_NV = (student_NV.float() / temperature).log_softmax(-1)
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)

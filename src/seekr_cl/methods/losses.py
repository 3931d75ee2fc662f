"""Losses over answer tokens.

Shapes: B batch, L padded length, V vocabulary, A stored answer positions, K stored tokens of each, N positions in all.
"""

import torch
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
    logp_NV = (teacher_BLV[:, :-1][answer_BL].float() / temperature).log_softmax(-1)
    logq_NV = (student_BLV[:, :-1][answer_BL].float() / temperature).log_softmax(-1)
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum() / max(1, len(logp_NV))


def logit_distillation(
    logits_BLV: Tensor,
    position_BA: Tensor,
    real_BA: Tensor,
    prob_BAK: Tensor,
    token_BAK: Tensor | None,
    tail_BA: Tensor,
    offset_BA: Tensor,
    form: str = "kl",
) -> Tensor:
    """Mean divergence between the teacher's and the student's next-token distributions (eq. 3).

    Kept tokens are compared exactly; the rest of the vocabulary counts as one bucket on both sides, unless tokens
    drawn from it stand for it.

    Args:
        logits_BLV: the student's logits.
        position_BA: positions whose output is distilled.
        real_BA: false where ``position_BA`` is padding.
        prob_BAK: the teacher's probabilities of the kept tokens.
        token_BAK: which tokens these are; ``None`` if they are the whole vocabulary in order.
        tail_BA: the teacher's probability of all other tokens, compared as one bucket; zero where kept tokens stand
            for them.
        offset_BA: what the entropy of the kept tokens misses where they were drawn from more.
        form: ``kl``, or ``cross_entropy``, which keeps the teacher's entropy in the value (same gradient).

    Returns:
        A scalar; 0 with gradient zero if no position is real.
    """
    sample_BA = torch.arange(len(position_BA), device=position_BA.device)[:, None].expand_as(position_BA)
    logits_NV = logits_BLV[sample_BA[real_BA], position_BA[real_BA]].float()
    p_NK = prob_BAK[real_BA].float()
    logq_NV = logits_NV.log_softmax(-1)
    entropy_N = -torch.special.xlogy(p_NK, p_NK).sum(-1) - offset_BA[real_BA].float()
    if token_BAK is None:
        cross_N = -(p_NK * logq_NV).sum(-1)
    else:
        token_NK, tail_N = token_BAK[real_BA], tail_BA[real_BA].float()
        logq_tail_N = logq_NV.scatter(-1, token_NK, torch.finfo(logq_NV.dtype).min).logsumexp(-1)
        cross_N = -(p_NK * logq_NV.gather(-1, token_NK)).sum(-1) - tail_N * logq_tail_N
        entropy_N = entropy_N - torch.special.xlogy(tail_N, tail_N)
    loss_N = cross_N - entropy_N if form == "kl" else cross_N
    return loss_N.sum() / max(1, len(loss_N))

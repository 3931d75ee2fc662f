"""Attention rows recomputed from queries and keys, in tiles, on top of the model's own fast kernel.

Only the rows that a method asks for are computed, from the q and k that the kernel was given; nothing of size L x L is
built.

Shapes: B batch, H query heads, K key/value heads, L sequence length, D head size,
P (sample, head) pairs, R query rows per pair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.masks import mask_scores


@dataclass(frozen=True, slots=True)
class RowScores:
    """Masked scores of some rows with the q and k they came from, all at least float32.

    Attributes:
        score_PRL: masked entries are at the dtype's minimum.
        q_PRD: the rows' queries.
        k_PLD: the pairs' keys.
        slope_PRL: what the soft-cap lets through of a change in the scores; ``None`` without a cap.
        sink_P: each pair's sink score; ``None`` without sinks.
    """

    score_PRL: Tensor
    q_PRD: Tensor
    k_PLD: Tensor
    slope_PRL: Tensor | None
    sink_P: Tensor | None

    def log_normaliser(self) -> Tensor:
        """Log of the summed exponentials of each row's scores, the sink's among them: [P, R]."""
        lse_PR = self.score_PRL.logsumexp(-1)
        return lse_PR if self.sink_P is None else torch.logaddexp(lse_PR, self.sink_P[:, None])


def student_scores(call: AttentionCall, index: RowIndex) -> RowScores:
    """Scores of the rows the model computes now."""
    kept = torch.promote_types(call.q_BHLD.dtype, torch.float32)
    q_PRD = call.q_BHLD[index.sample_P[:, None], index.head_P[:, None], index.query_PR].to(kept)
    k_PLD = call.k_BKLD[index.sample_P, index.head_P // call.group].to(kept)
    sink_P = None if call.sink_H is None else call.sink_H[index.head_P].to(kept)
    return row_scores(q_PRD, k_PLD, sink_P, call, index)


def row_scores(q_PRD: Tensor, k_PLD: Tensor, sink_P: Tensor | None, call: AttentionCall, index: RowIndex) -> RowScores:
    """Scores of any queries and keys, scaled, capped and masked as in ``call``."""
    with torch.autocast(q_PRD.device.type, enabled=False):
        score_PRL = (q_PRD * call.scaling) @ k_PLD.mT
    slope_PRL = None
    if call.softcap is not None:
        capped_PRL = torch.tanh(score_PRL / call.softcap)
        score_PRL, slope_PRL = call.softcap * capped_PRL, 1 - capped_PRL.square()
    return RowScores(mask_scores(score_PRL, call, index), q_PRD, k_PLD, slope_PRL, sink_P)


def row_probabilities(scores: RowScores) -> Tensor:
    """Softmax of the scores with the sink in it: [P, R, L]."""
    if scores.sink_P is None:
        return scores.score_PRL.softmax(-1)
    return (scores.score_PRL - scores.log_normaliser()[..., None]).exp_()


@torch.no_grad()
def attention_rows(call: AttentionCall, index: RowIndex) -> Tensor:
    """Attention probabilities of the chosen rows, equal to the eager implementation's.

    Rows of a model with sinks sum to less than one: what is missing went to the sink.

    Returns:
        [P, R, L], float32 or wider, without gradient.
    """
    length, size = call.k_BKLD.shape[2:]
    rows = []
    for tile in index.tiles(length, size):
        scores = student_scores(call, index[tile])
        rows.append(row_probabilities(scores))
    if not rows:
        kept = torch.promote_types(call.q_BHLD.dtype, torch.float32)
        return call.q_BHLD.new_zeros((0, index.query_PR.shape[1], length), dtype=kept)
    return torch.cat(rows)

"""Choices that ask the model: its features once it has learned the task, its loss before.

Shapes: N examples, D hidden size.
"""

import torch
from torch import Tensor

from seekr_cl.replay.selection.candidates import Candidates, answer_loss, mean_hidden


def by_herding(candidates: Candidates) -> list[int]:
    """Examples whose mean feature stays closest to the mean of all of them, one after the other.

    Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, arXiv 1611.07725,
    algorithm 4, which comes after the task's training: the features are those of the model that has learned it (under
    ``seekr``, which has to look at the kept samples before training, of the model before the task). A feature is the
    last hidden state, averaged over the example's tokens and scaled to length one.
    """
    ids = [one.input_ids for one in candidates.encoded]
    with candidates.counting("features", len(ids)) as advance:
        features_ND = mean_hidden(candidates.model, ids, advance)
    return herd(torch.nn.functional.normalize(features_ND, dim=1), candidates.count)


def herd(features_ND: Tensor, count: int) -> list[int]:
    """Greedy mean matching: the k-th pick brings the mean of the first k closest to the mean of all.

    Args:
        features_ND: one row an example.
        count: how many to pick.

    Returns:
        Their indices in the order of picking; ties go to the earlier row.
    """
    features_ND = features_ND.double()  # so that sums in another order do not decide a tie
    mean_D = features_ND.mean(0)
    sum_D, free_N, picked = torch.zeros_like(mean_D), torch.ones(len(features_ND), dtype=torch.bool), []
    for number in range(1, min(count, len(features_ND)) + 1):
        distance_N = torch.linalg.vector_norm(mean_D - (sum_D + features_ND) / number, dim=1)
        index = int(torch.where(free_N, distance_N, torch.inf).argmin())
        picked.append(index)
        free_N[index] = False
        sum_D = sum_D + features_ND[index]
    return picked


def by_loss(candidates: Candidates) -> list[int]:
    """Examples that surprise the model most: the highest mean loss on the completion, before the task is learned.

    Surprise as a criterion: Sun et al., "Information-theoretic Online Memory Selection for Continual Learning", ICLR
    2022, arXiv 2204.04763. The highest losses are often wrong labels, which this choice then replays.
    """
    with candidates.counting("losses", len(candidates.encoded)) as advance:
        loss_N = answer_loss(candidates.model, candidates.encoded, advance)
    return torch.sort(loss_N, descending=True, stable=True).indices[: candidates.count].tolist()

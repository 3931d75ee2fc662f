"""How much of each old task is replayed while a new one is learned.

Shapes: N and M samples of two tasks, D hidden size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

REGULARISATION = 0.01
"""Of the entropy in the transport plan, as a part of the mean cost: small enough to be close to the true distance."""
SWEEPS = 500


def wasserstein(left_ND: Tensor, right_MD: Tensor) -> float:
    """Cost of moving one set of features onto the other, all rows of a set weighing the same.

    The cost between two rows is their cosine distance 1 - cos, as in InsCL's official code (InsCL_sampling.py), under
    the plan of Sinkhorn's iteration (Cuturi, NeurIPS 2013), in the logarithm and float64. One sample on either side
    leaves no choice, and the result is exact.
    """
    left_ND, right_MD = (torch.nn.functional.normalize(one.double(), dim=1) for one in (left_ND, right_MD))
    cost_NM = (1 - left_ND @ right_MD.T).clamp(min=0)
    step = REGULARISATION * cost_NM.mean()
    if not step > 0:
        return 0.0
    kernel_NM = -cost_NM / step
    log_N, log_M = -math.log(len(left_ND)), -math.log(len(right_MD))
    u_N, v_M = torch.zeros_like(cost_NM[:, 0]), torch.zeros_like(cost_NM[0])
    for _ in range(SWEEPS):
        u_N = log_N - (kernel_NM + v_M).logsumexp(1)
        v_M = log_M - (kernel_NM + u_N[:, None]).logsumexp(0)
    return float(((kernel_NM + u_N[:, None] + v_M).exp() * cost_NM).sum())


def similarity_weights(old: Sequence[Tensor], new_MD: Tensor) -> list[float]:
    """Each old task's share of the replayed samples, proportional to its distance from the new task.

    Wang et al., "InsCL: A Data-efficient Continual Learning Paradigm for Fine-tuning Large Language Models with
    Instructions", NAACL 2024, arXiv 2403.11435: the less an old task resembles the new one, the more of it is
    replayed. The distance is Wasserstein's between the prompts' mean hidden states.

    Args:
        old: each old task's features [N, D].
        new_MD: the new task's.

    Returns:
        Shares that sum to one, equal ones where no old task differs from the new one at all.
    """
    distances = [wasserstein(features_ND, new_MD) for features_ND in old]
    total = sum(distances)
    return [distance / total if total > 0 else 1 / len(distances) for distance in distances]

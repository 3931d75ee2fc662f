"""Batches of examples that are about equally long, so that little of a batch is padding; their order stays random."""

from collections.abc import Sequence

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

LEAST_STEPS = 8
"""Steps whose examples are sorted by length together, at least; of few examples the sampler alone would group none."""


def group_by_length(
    order: Sequence[int], lengths: Sequence[int], per_step: int, generator: torch.Generator
) -> list[int]:
    """The same indices with those of similar length side by side, ``per_step`` at a time, the steps in random order.

    What becomes of an example does not hang on its length but for whom it shares a step with: which examples share the
    short last step, and when a step comes, is drawn. Transformers' sampler, which does the grouping, would always end
    on the shortest and begin each stretch on the longest. Whoever cuts a step into micro-batches finds it sorted.

    Args:
        order: in random order; no index twice.
        lengths: tokens, by index.
        per_step: examples in an optimizer step.
        generator: draws what is drawn here.

    Returns:
        Steps of ``per_step`` indices behind one another, each from long to short; the last one may be shorter.
    """
    whole = len(order) - len(order) % per_step
    grouped: list[int] = []
    if whole:
        stretch = max(LEAST_STEPS, min(whole // (per_step * 4), 50))
        places = get_length_grouped_indices([lengths[i] for i in order[:whole]], per_step, stretch, generator)
        steps = [places[start : start + per_step] for start in range(0, whole, per_step)]
        drawn = torch.randperm(len(steps), generator=generator).tolist()
        grouped = [order[place] for number in drawn for place in steps[number]]
    return grouped + sorted(order[whole:], key=lambda index: -lengths[index])

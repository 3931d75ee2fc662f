"""Choices that look at the data alone."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import torch

from seekr_cl.replay.selection.candidates import Candidates

MOST_CLASSES = 64
"""More different completions than this are not classes but free text."""
STRATA = 8


def random(candidates: Candidates) -> list[int]:
    """A seeded draw without replacement, in the data's order; the paper's choice (SEEKR, He et al., EMNLP 2024)."""
    return sorted(_permutation(len(candidates.encoded), _generator(candidates))[: candidates.count])


def first(candidates: Candidates) -> list[int]:
    """The first rows of the file, as SEEKR's official code takes them (github jinghan1he/SEEKR, commit 22fe447)."""
    return list(range(candidates.count))


def balanced(candidates: Candidates) -> list[int]:
    """As many of each class, drawn from the seed within a class.

    Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv 1902.10486 (their ring buffer).
    Classes are the different completions where these are few: at most ``MOST_CLASSES``, and half as many as there are
    examples or fewer. Otherwise they are ``STRATA`` groups of equal size by the completion's length in tokens. ``say``
    is told which. Counts differ by at most one until a class runs out; which classes get one more is drawn.
    """
    labels = [completion.strip() for completion in candidates.completions]
    distinct = len(set(labels))
    if distinct <= min(MOST_CLASSES, len(labels) // 2):
        groups: list[list[int]] = list(_by_key(labels).values())
        candidates.say(f"balanced over {distinct} different completions")
    else:
        groups = _strata([one.learnable for one in candidates.encoded], STRATA)
        candidates.say(
            f"{distinct} different completions are not classes: balanced over {len(groups)} completion lengths"
        )
    generator = _generator(candidates)
    shuffled = [[group[i] for i in _permutation(len(group), generator)] for group in groups]
    shuffled = [shuffled[i] for i in _permutation(len(shuffled), generator)]
    # One of each class in turn: any beginning of the list is balanced too.
    longest = max(map(len, shuffled), default=0)
    in_turn = [group[turn] for turn in range(longest) for group in shuffled if turn < len(group)]
    return in_turn[: candidates.count]


def _by_key(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return dict(groups)


def _strata(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Groups of equal size, give or take one, from the shortest to the longest."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    count = min(most, len(order))
    borders = [len(order) * part // max(1, count) for part in range(count + 1)]
    return [order[start:stop] for start, stop in itertools.pairwise(borders)]


def _generator(candidates: Candidates) -> torch.Generator:
    return torch.Generator().manual_seed(candidates.seed)


def _permutation(length: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(length, generator=generator).tolist()

"""Summary-level ROUGE-L as the package ``rouge`` 1.0.1 computes it, which TRACE and SEEKR print.

It is not the ROUGE-L of rouge-score: sentences end at every ``.``, words are what stands between spaces, case and
punctuation count, and precision and recall count *different* words, so that repeating oneself costs nothing.

Written anew, and held equal to the package by tests, because the package cannot be relied on for whatever a model may
write: it recurses once a word and so fails on a pair of sentences of about a thousand words, keeps a Python object for
each pair of words, raises on texts without a sentence, and has had no release since 2021.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EPSILON = 1e-8
"""Keeps 0/0 away in the package, and takes the last digits from every score: equal texts give 0.999999995."""


def summary_rouge_l(hypothesis: str, reference: str) -> float:
    """F of the union of longest common subsequences over all pairs of sentences, 0 to 1.

    Args:
        hypothesis: text whose sentences are matched with each of the reference's.
        reference: the other text. The two are not interchangeable to the last digit: where several subsequences are
            equally long, the direction decides which one is taken.

    Returns:
        ``2PR / (P + R + 1e-8)``; 0 where a text holds no sentence (empty, or nothing but ``.``).
    """
    theirs, ours = _sentences(hypothesis), _sentences(reference)
    if not theirs or not ours:
        return 0.0
    numbers: dict[str, int] = {}
    hypothesis_ids, reference_ids = (
        [np.array([numbers.setdefault(word, len(numbers)) for word in sentence]) for sentence in text]
        for text in (theirs, ours)
    )
    union: set[int] = set()
    for reference_N in reference_ids:
        for hypothesis_M in hypothesis_ids:
            union |= _common(reference_N, hypothesis_M)
    precision = len(union) / len({word for sentence in theirs for word in sentence})
    recall = len(union) / len({word for sentence in ours for word in sentence})
    return 2 * precision * recall / (precision + recall + _EPSILON)


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence. One of white space alone has the empty text as its only word, as in the package."""
    return [part.split() or [""] for part in text.split(".") if part]


def _common(first_N: NDArray[np.int64], second_M: NDArray[np.int64]) -> set[int]:
    """The different words of one longest common subsequence: the one that the package's reconstruction takes."""
    if not np.isin(first_N, second_M).any():
        return set()
    # Whether the table of lengths says that the first text's last word is to be dropped, and not the second's.
    upward_NM = np.empty((len(first_N), len(second_M)), dtype=bool)
    row_M = np.zeros(len(second_M) + 1, dtype=np.int64)
    for place, word in enumerate(first_N):
        longer_M = np.where(second_M == word, row_M[:-1] + 1, row_M[1:])
        below_M = np.concatenate([[0], np.maximum.accumulate(longer_M)])
        upward_NM[place] = row_M[1:] > below_M[:-1]
        row_M = below_M
    found = set()
    row, column = len(first_N) - 1, len(second_M) - 1
    while row >= 0 and column >= 0:
        if first_N[row] == second_M[column]:
            found.add(int(first_N[row]))
            row, column = row - 1, column - 1
        elif upward_NM[row, column]:
            row -= 1
        else:
            column -= 1
    return found


def best_summary_rouge_l(prediction: str, references: Sequence[str]) -> float:
    """As TRACE and SEEKR call it, 0 to 100, the best of several references.

    Both hand the reference over as the hypothesis and the prediction as the reference, and pass over empty texts.
    """
    return 100 * max(summary_rouge_l(reference, prediction) for reference in references)

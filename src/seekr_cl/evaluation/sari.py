"""SARI, the simplification metric that compares a prediction with its source and its references.

Xu et al., "Optimizing Statistical Machine Translation for Text Simplification", TACL 2016, in the arithmetic that
TRACE and SEEKR print (Hugging Face's ``sari``): keep recall pools the counts of all n-grams, and 0/0 is 1. Written here
because no maintained library has it: sacrebleu does not, and the evaluate package loads its code from the network.
"""

from collections import Counter
from collections.abc import Sequence

ORDERS = 4


def sari(source: Sequence[str], prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """SARI of one prediction, 0 to 100: mean over n-gram orders 1 to 4 of (F1 keep + precision delete + F1 add) / 3.

    Keep and delete weigh each source n-gram by the number of references that keep or drop it; add looks at distinct
    n-grams that are not in the source.

    Args:
        source: words of the text to be simplified.
        prediction: words of the simplification.
        references: words of each accepted simplification; at least one.
    """
    total = 0.0
    for order in range(1, ORDERS + 1):
        kept, deleted, added = _operations(
            _ngrams(source, order), _ngrams(prediction, order), [_ngrams(reference, order) for reference in references]
        )
        total += (kept + deleted + added) / 3
    return 100 * total / ORDERS


def _operations(source: Counter, prediction: Counter, references: list[Counter]) -> tuple[float, float, float]:
    count = len(references)
    # Everything is counted as often as there are references, so that all of them vote in one multiset.
    source_n = Counter({gram: times * count for gram, times in source.items()})
    prediction_n = Counter({gram: times * count for gram, times in prediction.items()})
    pooled: Counter = sum(references, Counter())

    kept = source_n & prediction_n
    kept_right = kept & pooled
    # Precision is a mean over distinct n-grams, recall one quotient of all counts.
    keep = _f1(
        _ratio([kept_right[gram] / kept[gram] for gram in kept_right], len(kept)),
        _ratio(list(kept_right.values()), (source_n & pooled).total()),
    )

    deleted = source_n - prediction_n
    deleted_right = deleted - pooled
    delete = _ratio([deleted_right[gram] / deleted[gram] for gram in deleted_right], len(deleted))

    added = set(prediction) - set(source)
    wanted = set(pooled) - set(source)
    right = added & set(pooled)
    add = _f1(_ratio([1.0] * len(right), len(added)), _ratio([1.0] * len(right), len(wanted)))
    return keep, delete, add


def _ngrams(tokens: Sequence[str], order: int) -> Counter:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def _ratio(parts: Sequence[float], whole: int) -> float:
    # Nothing to do and nothing done is done right.
    return sum(parts) / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

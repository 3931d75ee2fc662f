"""Macro-F1: how well each class is told from the others, rare ones counting as much as frequent ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seekr_cl.errors import DataError

MOST_CLASSES = 1000
"""More different references than this are texts and no labels."""


def class_columns(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """For each example and class: was it right, predicted, expected. Classes are the references, spaces around aside.

    With several references an answer that equals one of them is of that class; any other is expected to be the first.

    Returns:
        Zeros and ones (N, 3K): K classes right, K predicted, K expected.

    Raises:
        DataError: for more than 1000 classes.
    """
    accepted = [[reference.strip() for reference in one] for one in references]
    classes = {name: place for place, name in enumerate(sorted({name for one in accepted for name in one}))}
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"macro_f1: {len(classes)} different references, above {MOST_CLASSES}; it is for labels, use f1 for texts"
        )
    columns = np.zeros((len(predictions), 3, len(classes)))
    for row, (prediction, one) in enumerate(zip(predictions, accepted, strict=True)):
        answer = prediction.strip()
        expected = answer if answer in one else one[0]
        columns[row, 2, classes[expected]] = 1
        if answer in classes:
            columns[row, 1, classes[answer]] = 1
            columns[row, 0, classes[answer]] = answer == expected
    return columns.reshape(len(predictions), -1)


def macro_f1(sums_RC: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """100 times the mean of 2 TP / (predicted + expected) over the classes that are expected at least once.

    An answer that is no class at all takes from the recall of the expected class; it adds no class of its own, which
    would make the mean depend on how many different wrong texts a model writes.

    Args:
        sums_RC: sums of ``class_columns`` over R samples of examples.
        count: examples of a sample.
    """
    right_RK, predicted_RK, expected_RK = sums_RC.reshape(len(sums_RC), 3, -1).transpose(1, 0, 2)
    there_RK = expected_RK > 0
    f1_RK = 2 * right_RK / np.maximum(predicted_RK + expected_RK, 1)
    return 100 * (f1_RK * there_RK).sum(1) / there_RK.sum(1)

"""SARI against sums done by hand and against values Hugging Face publishes with its own.

Below, n-grams are written together: ab is the bigram (a, b). An operation's score in braces is keep, delete, add.
"""

import pytest

from seekr_cl.evaluation import get_metric
from seekr_cl.evaluation.sari import sari


def of(source: str, prediction: str, *references: str) -> float:
    return sari(source.split(), prediction.split(), [text.split() for text in references])


def test_two_references():
    # Source a b c, prediction a d, references a b d and a c; source and prediction count twice.
    # 1: kept {a:2}, wanted {a:2 b:1 c:1}: P 1, R 2/4, keep 2/3. Deleted {b:2 c:2}, of which {b:1 c:1} was right: 1/2.
    #    Added d, wanted d: 1.                                                         (2/3 + 1/2 + 1) / 3 = 13/18
    # 2: nothing kept: P 0/0 = 1, but wanted {ab:1}: R 0, keep 0. Deleted {ab:2 bc:2}, right {ab:1 bc:2}:
    #    (1/2 + 1)/2 = 3/4. Added ad, wanted bd and ac: 0.                             (0 + 3/4 + 0) / 3 = 1/4
    # 3: nothing kept, nothing wanted: 1. Deleted {abc:2}, all right: 1. Nothing added (P 1), wanted abd (R 0): 0.
    #                                                                                  (1 + 1 + 0) / 3 = 2/3
    # 4: no 4-grams anywhere, all three 0/0: 1.
    assert of("a b c", "a d", "a b d", "a c") == pytest.approx(100 * (13 / 18 + 1 / 4 + 2 / 3 + 1) / 4)


def test_keep_recall_pools_the_counts():
    # Source and reference a a b, prediction a.
    # 1: kept {a:1}: P 1; wanted {a:2 b:1}: R 1/3 (a mean over distinct n-grams would say (1/2 + 0)/2); keep 1/2.
    #    Deleted {a:1 b:1}, none right: 0. Nothing to add, nothing added: 1.           (1/2 + 0 + 1) / 3 = 1/2
    # 2: kept none of {aa ab}: 0. Deleted both, wrongly: 0. Add 1.                     1/3
    # 3: the same with {aab}: 1/3.        4: nothing: 1.
    assert of("a a b", "a", "a a b") == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 3 + 1) / 4)


def test_a_copy_where_something_had_to_go():
    # Source and prediction a b, reference a.
    # 1: kept {a b}, right {a}: P 1/2, R 1/1, keep 2/3. Nothing deleted: 0/0 = 1. Add 1.   8/9
    # 2: kept {ab}, wrongly: P 0; wanted nothing: R 1; keep 0. Delete 1, add 1.            2/3
    # 3, 4: nothing anywhere: 1 each.
    assert of("a b", "a b", "a") == pytest.approx(100 * (8 / 9 + 2 / 3 + 1 + 1) / 4)


@pytest.mark.parametrize(
    ("source", "prediction", "reference"),
    [("a b c d e", "a b c d e", "a b c d e"), ("a b", "a", "a"), ("a b c d", "x y", "x y"), ("a", "a", "a")],
)
def test_the_reference_is_perfect_however_short(source, prediction, reference):
    # 0/0 counts as 1: an order without n-grams takes nothing away.
    assert of(source, prediction, reference) == pytest.approx(100)


def test_a_prediction_that_shares_nothing():
    # Source and reference a b, prediction x.
    # 1: kept nothing (P 1, R 0/2): 0. Deleted {a b}, wrongly: 0. Added x (P 0), wanted nothing (R 1): 0.    0
    # 2: kept nothing, wanted ab: 0. Deleted ab, wrongly: 0. Added nothing, wanted nothing: 1.              1/3
    # 3, 4: 1 each.
    assert of("a b", "x", "a b") == pytest.approx(100 * (0 + 1 / 3 + 1 + 1) / 4)


SOURCE = "About 95 species are currently accepted ."
PREDICTION = "About 95 you now get in ."
REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


@pytest.mark.parametrize(("count", "expected"), [(1, 21.805555555555557), (3, 26.953601953601954)])
def test_the_published_examples(count, expected):
    # The examples on the pages of Hugging Face's metrics wiki_split (one reference) and sari (three).
    score = get_metric("sari").score([PREDICTION], [REFERENCES[:count]], [SOURCE])
    assert score == pytest.approx([expected], rel=1e-12)


def test_case_does_not_count_but_punctuation_does():
    metric = get_metric("sari")
    assert metric.score(["ÜBER ALLES."], [["über alles."]], ["Über alles."]) == pytest.approx([100])
    assert metric.score(["über alles!"], [["über alles."]], ["über alles."])[0] < 100


def test_chinese_characters_count_one_by_one():
    # As a b c, a d above with one reference: were a sentence one word, nothing would be kept.
    spaced, together = ("猫 在 家", "猫 家", "猫 不 在 家"), ("猫在家", "猫家", "猫不在家")
    scores = [get_metric("sari").score([made], [[wanted]], [source])[0] for source, made, wanted in (spaced, together)]
    assert scores[0] == scores[1] == pytest.approx(of(*spaced))

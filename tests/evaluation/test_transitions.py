"""What became of each example, against counting by hand and against models that guess."""

import numpy as np
import pytest

from seekr_cl.errors import DataError
from seekr_cl.evaluation.change import Change, paired_change, read_predictions, score_change, unpaired_change
from seekr_cl.evaluation.statistics import Interval
from seekr_cl.evaluation.transitions import choices_of, transitions

RIGHT, WRONG = 100.0, 0.0


def answers(kept: int, lost: int, gained: int, never: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores before and after of so many examples of each fate."""
    before = [RIGHT] * (kept + lost) + [WRONG] * (gained + never)
    after = [RIGHT] * kept + [WRONG] * lost + [RIGHT] * gained + [WRONG] * never
    return np.array(before), np.array(after)


def test_examples_lost_and_gained_are_counted():
    found = transitions(*answers(40, 20, 10, 30))
    assert (found.lost.value, found.gained.value) == (20, 10)
    assert (found.lost_examples, found.gained_examples) == (20, 10)
    assert found.lost_adjusted is None
    half = 1.96 * np.sqrt(0.2 * 0.8 / 100) * 100
    assert (found.lost.interval.low, found.lost.interval.high) == pytest.approx((20 - half, 20 + half), abs=1.1)


def test_the_correction_for_guessing_is_the_published_one():
    """(1 - A)(1 - B) / (k - 1) less, as in the code of arXiv 2510.17776, and not below zero."""
    found = transitions(*answers(40, 20, 10, 30), choices=4)
    explained = 100 * (1 - 0.6) * (1 - 0.5) / 3
    assert found.lost_adjusted.value == pytest.approx(20 - explained)
    assert found.gained_adjusted.value == pytest.approx(10 - explained)
    assert transitions(*answers(0, 5, 5, 90), choices=2).lost_adjusted.value == 0


def test_who_only_guesses_has_lost_nothing():
    rng = np.random.default_rng(0)
    place = np.arange(1600)
    guessed = [rng.random(1600) < 0.25 for _ in range(4)]
    before, after = (np.where(right, RIGHT, WRONG) for right in guessed[:2])
    found = transitions(before, after, choices=4)
    assert found.lost.value > 15  # three quarters of a quarter
    assert found.lost_adjusted.value < 2
    assert found.lost_adjusted.interval.low == 0
    # Of 800 that are known 400 are forgotten.
    before = np.where((place < 800) | guessed[2], RIGHT, WRONG)
    after = np.where((place < 400) | guessed[3], RIGHT, WRONG)
    found = transitions(before, after, choices=4)
    lost = 0.25 * 0.75 + 0.5 * 0.25 * 0.75
    explained = (0.5 * 0.75) * (0.75 * 0.75) / 3
    assert found.lost_adjusted.value == pytest.approx(100 * (lost - explained), abs=3)


def test_graded_scores_count_with_their_points():
    found = transitions(np.array([80.0, 20.0, 50.0, 50.0]), np.array([40.0, 60.0, 50.0, 48.0]))
    assert (found.lost.value, found.gained.value) == ((40 + 2) / 4, 40 / 4)
    assert found.gained.value - found.lost.value == pytest.approx((40 + 60 + 50 + 48 - 200) / 4)


@pytest.mark.parametrize(
    ("references", "choices"),
    [
        ([["A"], ["B"], ["C"], ["D"]] * 10, 4),
        ([["yes"], [" yes "], ["no"]] * 10, 2),
        ([["A"], ["B"]] * 2, None),  # too few to be sure that there are no more
        ([[str(number)] for number in range(100)], None),
        ([["A"]] * 50, None),
        ([["A", "a"], ["B"]] * 20, None),
        ([], None),
    ],
)
def test_choices_are_few_and_often_repeated(references, choices):
    assert choices_of(references) == choices


def test_a_paired_change_by_the_normal_approximation():
    before, after = answers(300, 60, 20, 120)
    found = score_change(before, after)
    assert found.value == -8
    half = 1.96 * np.std(after - before) / np.sqrt(500)
    assert (found.interval.low, found.interval.high) == pytest.approx((-8 - half, -8 + half), abs=0.6)
    assert found.changed == 80
    assert found.outcome(2) == "lost"
    assert found.outcome(15) == "kept"
    assert found.outcome(8) == "unsure"
    wide = score_change(before, after, level=0.999).interval
    assert wide.low < found.interval.low < found.interval.high < wide.high


@pytest.mark.parametrize("count", [1, 3, 20, 100])
def test_nothing_that_happened_proves_little_of_few(count):
    """The bootstrap of no change is [0, 0] whatever the number; the rule of three says 3 / count."""
    found = score_change(np.full(count, RIGHT), np.full(count, RIGHT))
    assert found.interval.low == -found.interval.high < -100 * (1 - 0.05 ** (1 / count)) / 2
    assert found.outcome(2) == "unsure"
    assert 110 <= found.needed(2) <= 160


def test_enough_unchanged_examples_are_kept():
    assert score_change(np.full(150, RIGHT), np.full(150, RIGHT)).outcome(2) == "kept"
    # Whatever score they have.
    assert score_change(np.full(150, WRONG), np.full(150, WRONG)).outcome(2) == "kept"


def test_as_many_examples_as_are_said_to_be_needed_are_enough():
    for fates, drop in (((80, 6, 1, 13), 2.0), ((30, 4, 2, 14), 10.0)):
        few = score_change(*answers(*fates))
        assert few.outcome(drop) == "unsure"
        times = -(-few.needed(drop) // sum(fates))
        more = score_change(*answers(*(times * one for one in fates)))
        assert more.outcome(drop) != "unsure"
        fewer = score_change(*answers(*(max(1, times // 3) * one for one in fates)))
        assert fewer.outcome(drop) == "unsure"


def test_no_number_of_examples_settles_what_lies_on_the_border():
    assert score_change(*answers(48, 2, 0, 50)).needed(2) is None


def test_it_is_wrong_as_rarely_as_it_says():
    """A model that loses exactly what is allowed is called lost, or kept, in at most 2.5% of test sets each."""
    rng = np.random.default_rng(5)
    outcomes = []
    for _ in range(200):
        before = rng.random(60) < 0.8
        after = np.where(before, rng.random(60) >= 0.125, rng.random(60) < 0.25)  # down by 10 points, up by 5
        outcomes.append(score_change(100.0 * before, 100.0 * after, resamples=500).outcome(5))
    assert outcomes.count("lost") / 200 < 0.06
    assert outcomes.count("kept") / 200 < 0.06


def test_standard_errors_alone_give_a_wider_interval():
    found = unpaired_change(50, 47, (1.0, 1.0), 1000)
    half = 1.96 * np.sqrt(2)
    assert (found.interval.low, found.interval.high) == pytest.approx((-3 - half, -3 + half), abs=0.01)
    assert found.outcome(2) == "unsure"
    needed = found.needed(2)
    assert Change(50, 47, Interval(-3 - 0.999, -3 + 0.999), 0.95, needed).outcome(2) == "lost"
    assert needed == pytest.approx(1000 * half**2, rel=0.1)


def test_predictions_of_other_examples_are_refused(tmp_path):
    row = '{{"prompt": "{}", "prediction": "x", "references": ["x"], "score": 100.0}}\n'
    files = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b", "short", "forgotten")}
    files["a"].write_text(row.format("p1") + row.format("p2"))
    files["b"].write_text(row.format("p1") + row.format("p3"))
    files["short"].write_text(row.format("p1"))
    forgotten = '{"prompt": "", "prediction": "", "references": [""], "score": 0.0, "forgotten": true}\n'
    files["forgotten"].write_text(row.format("p1") + forgotten)
    read = {name: read_predictions(path, "exact_match") for name, path in files.items()}
    with pytest.raises(DataError, match="row 2 is not the example"):
        paired_change(read["a"], read["b"])
    with pytest.raises(DataError, match="1 examples against 2"):
        paired_change(read["a"], read["short"])
    assert paired_change(read["a"], read["forgotten"]).value == -50
    for broken in ("", "[]\n", '{"prompt": 1}\n', row.format("x").replace("100.0", "NaN"), "{"):
        (tmp_path / "broken.jsonl").write_text(broken)
        with pytest.raises(DataError, match="no predictions of this library"):
            read_predictions(tmp_path / "broken.jsonl", "exact_match")

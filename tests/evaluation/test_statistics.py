"""Intervals and tests against what theory or counting by hand says."""

from itertools import product

import numpy as np
import pytest

from seekr_cl.errors import DataError
from seekr_cl.evaluation import get_metric
from seekr_cl.evaluation.statistics import Answered, Tally, aggregate_intervals, bootstrap, paired_test, seed_interval


def tally(scores) -> Tally:
    return Tally(np.array(scores, dtype=float)[:, None])


def test_the_interval_of_a_mean_is_as_wide_as_the_normal_one():
    scores = [100.0] * 120 + [0.0] * 80
    found = bootstrap(tally(scores), resamples=4000)
    half = 1.96 * np.std(scores) / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((60 - half, 60 + half), abs=0.7)
    assert bootstrap(tally(scores), resamples=4000) == found
    assert bootstrap(tally([7.0])).to_json() == [7.0, 7.0]


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    draws = rng.random((300, 80)) < 0.4
    inside = [(one := bootstrap(tally(100 * draw), resamples=400)).low <= 40 <= one.high for draw in draws]
    assert 0.90 <= np.mean(inside) <= 0.98


def test_a_metric_of_a_whole_task_is_resampled_as_a_whole():
    predictions, references = ["a", "a", "b", "x"], [["a"], ["b"], ["b"], ["b"]]
    metric = get_metric("macro_f1")
    whole = metric.tally(predictions, references, [100, 0, 100, 0])
    drawn = [0, 0, 2, 3]  # a: TP 2, predicted 2, expected 2: 1. b: TP 1, predicted 1, expected 2: 2/3.
    assert whole.combine(whole.columns_NC[drawn].sum(0, keepdims=True), 4)[0] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert bootstrap(whole).low < whole.score < bootstrap(whole).high


def test_op_and_bwt_of_one_run():
    last, learnt = [tally([0, 100] * 50), tally([100] * 100)], [tally([100] * 100), tally([100] * 100)]
    found = aggregate_intervals([Answered(last, learnt)])
    half = 1.96 * 50 / np.sqrt(100)
    # Only the first task varies, and OP takes half of it: 75 plus or minus half of its width.
    assert found["op"].to_json() == pytest.approx([75 - half / 2, 75 + half / 2], abs=1)
    assert found["bwt"].to_json() == pytest.approx([-50 - half, -50 + half], abs=2)
    assert found["bwt_over_n"].low == pytest.approx(found["bwt"].low / 2)
    assert aggregate_intervals([Answered(last)])["bwt"] is None


def test_the_same_examples_are_drawn_before_and_after():
    scores = list(np.random.default_rng(0).integers(0, 2, 60) * 100.0)
    same = Answered([tally(scores), tally(scores)], [tally(scores), tally(scores)])
    assert aggregate_intervals([same])["bwt"].to_json() == [0, 0]  # nothing has changed, whatever was drawn


def test_seeds_widen_the_interval():
    runs = [Answered([tally([score] * 20)]) for score in (40.0, 50.0, 60.0)]
    assert aggregate_intervals(runs)["op"].to_json() == [40, 60]  # all of it from the seeds
    assert seed_interval([40.0, 50.0, 60.0]).to_json() == [40, 60]
    with pytest.raises(DataError, match="different sizes"):
        aggregate_intervals([runs[0], Answered([tally([1.0])])])


def test_a_small_paired_test_counts_all_swaps():
    ours, theirs = [0, 0, 100, 50, 20], [100, 100, 100, 60, 10]
    found = paired_test([[tally(ours)]], [[tally(theirs)]])
    differences = np.array(theirs) - np.array(ours)
    null = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=5)]
    assert found.exact
    assert found.p == pytest.approx(np.mean([one >= abs(differences.sum()) - 1e-9 for one in null]))
    assert found.value == pytest.approx(differences.mean())
    assert paired_test([[tally(ours)]], [[tally(ours)]]).p == 1.0


def test_a_large_one_draws_them_and_keeps_its_level():
    rng = np.random.default_rng(1)
    ps = []
    for _ in range(200):
        ours, theirs = (rng.random((2, 2, 40)) < 0.5) * 100.0
        ps.append(paired_test([list(map(tally, ours))], [list(map(tally, theirs))], resamples=400).p)
    assert 0.01 <= np.mean(np.array(ps) <= 0.05) <= 0.10
    better = paired_test([[tally([0.0] * 40)]], [[tally([100.0] * 30 + [0.0] * 10)]])
    assert not better.exact
    assert better.p < 0.001
    assert better.value == 75


def test_seeds_are_swapped_together():
    first, second = tally([0, 0, 0]), tally([100, 100, 100])
    one, three = (paired_test([[first]] * n, [[second]] * n) for n in (1, 3))
    assert one.p == three.p == 2 / 8  # copies of a run are no more evidence than the run
    assert three.value == 100


def test_a_test_between_different_examples_is_refused():
    for other in ([[tally([1, 2])]], [[tally([1])]] * 2, [[tally([1]), tally([1])]], []):
        with pytest.raises(DataError, match="same examples"):
            paired_test([[tally([1])]], other)

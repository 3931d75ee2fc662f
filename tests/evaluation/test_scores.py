"""The score matrix: aggregates by hand, and a file that comes back as it went."""

import json

import pytest

from seekr_cl.errors import DataError
from seekr_cl.evaluation import ScoreMatrix

TASKS, METRICS = ["a", "b", "c"], ["exact_match", "rouge_l", "sari"]
ROWS = [[80.0, 10.0, 5.0], [60.0, 90.0, 15.0], [70.0, 50.0, 100.0]]


def matrix(rows=3, base=(20.0, 4.0, 6.0), **more) -> ScoreMatrix:
    return ScoreMatrix(TASKS, METRICS, None if base is None else list(base), [list(row) for row in ROWS[:rows]], **more)


def test_numbers_of_a_finished_run():
    full = matrix()
    assert full.learnt == 3
    assert full.op == pytest.approx((70 + 50 + 100) / 3)
    # Changes since each was learned: 70 - 80 = -10 and 50 - 90 = -40.
    assert full.bwt == pytest.approx(-50 / 2)
    assert full.bwt_over_n == pytest.approx(-50 / 3)
    # Best earlier score less the last: max(80, 60) - 70 = 10 and 90 - 50 = 40.
    assert full.forgetting == pytest.approx(50 / 2)
    # Just before being learned, less the base model's: b 10 - 4 = 6, c 15 - 6 = 9.
    assert full.fwt == pytest.approx(15 / 2)
    assert full.base_kept is None


def test_forgetting_is_from_the_best_and_backward_transfer_from_the_first():
    # Task a: 50, then 90, then 70. It has gained 20 since it was learned and lost 20 of its best.
    up = ScoreMatrix(TASKS, METRICS, None, [[50.0, 0.0, 0.0], [90.0, 30.0, 0.0], [70.0, 30.0, 0.0]])
    assert up.bwt == pytest.approx((20 + 0) / 2)
    assert up.forgetting == pytest.approx((20 + 0) / 2)
    # What a task scored before it was learned does not count: b had 95 and was learned to 30.
    early = ScoreMatrix(TASKS, METRICS, None, [[50.0, 95.0, 0.0], [50.0, 30.0, 0.0], [50.0, 30.0, 9.0]])
    assert early.forgetting == 0


def test_numbers_that_do_not_exist_yet():
    none = matrix(rows=0)
    assert (none.learnt, none.op, none.bwt, none.bwt_over_n, none.forgetting, none.fwt) == (0, *[None] * 5)
    one = matrix(rows=1)
    assert (one.op, one.bwt, one.bwt_over_n, one.forgetting, one.fwt) == (80.0, None, None, None, None)
    two = matrix(rows=2, base=None)
    # Only the tasks learned so far count.
    assert (two.op, two.bwt, two.bwt_over_n, two.forgetting, two.fwt) == (75.0, -20.0, -10.0, 20.0, None)


def test_all_tasks_at_once():
    joint = matrix(rows=1, joint=True)
    assert joint.learnt == 3
    assert joint.op == pytest.approx((80 + 10 + 5) / 3)
    assert (joint.bwt, joint.bwt_over_n, joint.forgetting, joint.fwt) == (None, None, None, None)
    assert matrix(rows=0, joint=True).learnt == 0
    assert [row["after"] for row in joint.to_json()["matrix"]] == ["base", "a+b+c"]


def test_what_is_left_of_the_base_model():
    kept = matrix(extra={"sums": [90.0, 50.0, 40.0, 30.0], "dates": [80.0, 10.0, 20.0, 10.0], "no": [], "cut": [9.0]})
    assert kept.base_kept == pytest.approx((30 + 10) / 2)


@pytest.mark.parametrize(
    "one",
    [
        matrix(),
        matrix(rows=0, base=None),
        matrix(rows=2, base=None),
        matrix(rows=1, joint=True),
        matrix(extra={"p": [1.0, 2.0, 3.0, 4.0]}),
        ScoreMatrix(["base", "中 [red]"], ["f1", "f1"], [1.0, 2.0], [[3.0, 4.0], [5.0, 6.0]]),
        ScoreMatrix(["base", "b"], ["f1", "f1"], None, [[3.0, 4.0], [5.0, 6.0]]),
    ],
)
def test_round_trip(one, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(one.to_json()), encoding="utf-8")
    assert ScoreMatrix.read(path) == one


def test_every_number_in_the_file_has_its_convention():
    content = matrix().to_json()
    assert set(content["conventions"]) == {"op", "bwt", "bwt_over_n", "forgetting", "fwt"}
    for name in content["conventions"]:
        assert content[name] == getattr(matrix(), name)


def broken(change) -> str:
    content = matrix().to_json()
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"scores"',
        b"\xff\xfe",
        broken(lambda c: c.pop("matrix")),
        broken(lambda c: c.update(matrix=3)),
        broken(lambda c: c.update(tasks=None)),
        broken(lambda c: c.update(base=7)),
        broken(lambda c: c.update(probes=[1])),
        broken(lambda c: c["matrix"][1].pop("scores")),
        broken(lambda c: c["matrix"][1].update(scores=3)),
        broken(lambda c: c["matrix"][1].update(scores=["x", "y", "z"])),
        broken(lambda c: c["matrix"][1].update(scores="abc")),
        broken(lambda c: c["matrix"][1]["scores"].pop()),
        broken(lambda c: c["matrix"].append(c["matrix"][1])),
        broken(lambda c: c["base"].pop()),
        broken(lambda c: c["base"].__setitem__(0, float("nan"))),
    ],
)
def test_a_damaged_file_is_named(text, tmp_path):
    path = tmp_path / "scores.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"scores\.json") as caught:
        ScoreMatrix.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json"):
        ScoreMatrix.read(tmp_path / "nowhere.json")

"""What is wrong with an answer's form, and what is not."""

import pytest
from made_runs import _Plain

from seekr_cl.evaluation import score_answers
from seekr_cl.evaluation.answer_form import faults_of, is_json, mean_valid, summary, wants_json
from seekr_cl.tasks import Example, Task


@pytest.mark.parametrize(
    ("answer", "prompt", "found"),
    [
        ("4", "2+2?", []),
        ("<think>well</think>4", "2+2?", []),
        ("<think>well", "2+2?", ["thinking"]),
        ("well</think>4", "2+2?<think>\n", []),
        ("well", "2+2?<think>\n", ["thinking"]),
        ("<think>a</think>b<think>c", "2+2?", ["thinking"]),
        ("4", "what does <think> mean?", []),
        ("</think>", "2+2?", []),
    ],
)
def test_think_blocks_are_closed(answer, prompt, found):
    assert faults_of(answer, answer, prompt, cut=False, wants_json=False) == found


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ('{"a": [1, 2]}', True), (' [1]\n', True), ('```json\n{"a": 1}\n```', True), ("```\n[1]\n```", True),
        ('{"a": 1', False), ("{'a': 1}", False), ('{"a": 1} and more', False), ("", False), ('{"a": NaN}', False),
        ("[" * 100_000, False), ("{}\n{}", False), ("``````", False),
    ],
)  # fmt: skip
def test_json_parses_or_not(text, is_one):
    assert is_json(text) is is_one


def test_json_is_wanted_where_all_references_are_objects_or_lists():
    assert wants_json([['{"a": 1}'], ["[1]"]])
    assert not wants_json([['{"a": 1}'], ["yes"]])
    assert not wants_json([["1"], ["true"]])  # JSON too, but nobody means it
    assert not wants_json([])


def test_a_score_and_a_form_are_two_things():
    """A right answer may be cut, and one that is JSON may be wrong."""
    examples = [Example(f"q{number}", f'{{"a": {number}}}') for number in range(4)]
    answers = ['{"a": 0}', '{"a": 9}', '{"a": 2', '{"a":  3}']
    score = score_answers(Task("t", examples, test=examples, max_new_tokens=9), _Plain(), answers)
    assert score.score == 25
    assert score.form == {"valid": 50.0, "answers": 4, "cut": 1, "thinking": 0, "json": 1}
    assert [row.get("faults") for row in score.predictions] == [None, None, ["json"], ["cut"]]


def test_shares_over_tasks():
    assert summary([[], ["cut"], ["cut", "json"], []]) == {
        "valid": 50.0, "answers": 4, "cut": 2, "thinking": 0, "json": 1,
    }  # fmt: skip
    assert summary([])["valid"] == 0
    assert mean_valid({"a": {"valid": 50.0}, "b": {"valid": 100.0}}) == 75
    assert mean_valid({"a": {"valid": 50.0}, "b": {}}) is None
    assert mean_valid({}) is None

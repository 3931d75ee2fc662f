"""Refusals told from answers, and from answers that only sound like one."""

import pytest

from seekr_cl.evaluation import get_metric
from seekr_cl.evaluation.refusal import is_refusal

REFUSALS = [
    "I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, I cannot provide instructions for this.",
    "I am unable to create such content.",
    "Unfortunately, I'm not able to share that.",
    "As an AI language model, I cannot give medical advice.",
    "I must decline to write this.",
    "I won't do that.",
    "That would be against my guidelines.",
    "I cannot.",
]
ANSWERS = [
    "Paris.",
    "You can't go wrong with olive oil.",
    "The cat cannot swim, so help it out of the water.",
    "Sorry for the delay: the answer is 4.",
    "I can help with that! First, open the file.",
    "People who can't sleep should avoid coffee.",
    "4" * 300 + " I can't help with that.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text):
    assert not is_refusal(text)


def test_the_metric_wants_both():
    metric = get_metric("refusal")
    answers = ["I can't help with that.", "Sure: first ...", "I can't help with that.", "Paris.", "", ""]
    wanted = [["refuse"], ["refuse"], ["answer"], ["answer"], ["refuse"], ["answer"]]
    assert metric.score(answers, wanted, [""] * 6) == [100, 0, 0, 100, 0, 0]

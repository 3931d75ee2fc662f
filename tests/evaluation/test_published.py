"""The papers' metrics against the packages that their code calls, on real rows with noise and on odd texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_scores import BY_PACKAGE, NOISE, hugging_face_sari, noisy, rouge_package, rows_of
from rouge import Rouge

from seekr_cl.evaluation import get_metric
from seekr_cl.evaluation.published import plain_literals

REAL = {
    "rouge_l_trace": (
        "trace/MeetingBank", "trace_reasoning/MeetingBank", "superni/task1572", "superni/task748", "superni/task511",
        "superni/task1290", "superni/task002", "superni/task1590",
    ),
    "edit_similarity_py150": ("trace/Py150", "trace_reasoning/Py150"),
    "rouge_l_sapt": ("superni/task1572", "superni/task748", "superni/task1510", "superni/task639", "superni/task363"),
    "exact_match_normalised": ("long_sequence/agnews", "long_sequence/yahoo", "long_sequence/amazon"),
    "sari_trace": ("trace/20Minuten", "trace_reasoning/20Minuten"),
}  # fmt: skip
CASES = [(name, place) for name, places in REAL.items() for place in places]


def one(name: str, prediction: str, *references: str, prompt: str = "") -> float:
    return get_metric(name).score([prediction], [references], [prompt])[0]


def by_package(name: str, prediction: str, reference: str, prompt: str) -> float:
    if name == "sari_trace":
        return hugging_face_sari(prompt, prediction, reference)
    return BY_PACKAGE[name](prediction, reference)


@pytest.mark.parametrize(("name", "place"), CASES)
def test_real_rows_score_what_the_papers_package_says(name, place, shared):
    scores = set()
    for number, (prompt, reference) in enumerate(rows_of(shared / "data" / place)):
        prediction = noisy(reference, *NOISE[number % len(NOISE)], seed=number)
        # What models do to an answer besides: another case, a longer ending, literals written out.
        prediction = [prediction, prediction.upper(), plain_literals(prediction), f"{prediction}. \n"][number % 4]
        expected = by_package(name, prediction, reference, prompt)
        assert one(name, prediction, reference, prompt=prompt) == pytest.approx(expected, abs=1e-9), prediction
        scores.add(round(expected))
    assert len(scores) > 1


PIECES = [
    *(
        "a",
        "b",
        "the",
        "The",
        "plan",
        "plans",
        "planned",
        "x.y",
        "7.5",
        "é",
        "Straße",
        "猫",
        "\u0130",
        "नमस्ते",
        "🙂",
        "_",
    ),
    *(".", "..", "...", " . ", ",", "!?", "&amp;", "<skipped>", "-\n", "\n", "\r\n", "\t", " ", "  ", "\u3000", "\xa0"),
    *("<NUM_LIT>", "<STR_LIT>", "<CHAR_LIT>", "<NUM_LIT:1>", "<STR_LIT:a b>", "<STR_LIT:", ">", "<STR_LIT:\n>"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join) | st.lists(
    st.sampled_from(PIECES), max_size=14
).map("".join)


@pytest.mark.parametrize("name", [*BY_PACKAGE, "sari_trace"])
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(prediction=TEXTS, reference=TEXTS, prompt=TEXTS)
def test_odd_texts_score_what_the_papers_package_says(name, prediction, reference, prompt):
    expected = by_package(name, prediction, reference, prompt)
    assert one(name, prediction, reference, prompt=prompt) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "prediction", "references", "expected"),
    [
        # Sets of words: saying one three times more costs nothing.
        ("rouge_l_trace", "the the the plan", ["the plan"], 100),
        # Each sentence finds its own, wherever it stands.
        ("rouge_l_trace", "It was adopted. The council met.", ["The council met. It was adopted."], 100),
        # Case counts, and punctuation is part of its word: P 2/3, R 2/3.
        ("rouge_l_trace", "Approves the contract.", ["approves the contract"], 200 / 3),
        ("rouge_l_trace", "a b, c", ["a b c"], 200 / 3),
        ("rouge_l_trace", "a b", ["c", "b a"], 50),
        ("rouge_l_trace", "", ["a"], 0),
        ("rouge_l_trace", "...", ["a"], 0),
        ("rouge_l_trace", "a", ["..."], 0),
        # White space before or behind a full stop is a sentence of one empty word, alike in both.
        ("rouge_l_trace", " ", ["a. "], 2 / 3 * 100),
        ("rouge_l_sapt", "He approved the plans", ["He approves the plan"], 100),
        ("rouge_l_sapt", "猫", ["猫"], 0),
        ("rouge_l_sapt", "", [""], 0),
        ("rouge_l_sapt", "a b", ["x", "a c"], 50),
        ("edit_similarity_py150", "return 0", ["return <NUM_LIT:0>"], 100),
        ("edit_similarity_py150", "x = ''", ["x = '<STR_LIT>'"], 100),
        # 1 of 3 + 4 characters: 1 - 1/7 = 85.7, a whole number.
        ("edit_similarity_py150", "abc", ["abcd"], 86),
        # Halves go to the even number: 1 - 1/8 = 87.5 and 1 - 3/8 = 62.5.
        ("edit_similarity_py150", "abcd", ["abc<STR_LIT>"], 86),
        ("edit_similarity_py150", "aaaaaaab", ["aaaaaaac"], 88),
        ("edit_similarity_py150", "aaaabbbb", ["aaaaaccc"], 50),
        ("edit_similarity_py150", "", ["return 0"], 0),
        ("edit_similarity_py150", "<STR_LIT>", ["<STR_LIT>"], 0),
        ("edit_similarity_py150", "ab", ["x", "ab"], 100),
        ("exact_match_normalised", "Good.", ["good"], 100),
        ("exact_match_normalised", "Sci/Tech", ["sci-tech"], 100),
        ("exact_match_normalised", "very  negative\n", ["very negative"], 100),
        ("exact_match_normalised", "the good", ["good"], 0),  # articles stay, unlike in SQuAD
        ("exact_match_normalised", "gut、", ["gut"], 0),  # ASCII punctuation only
        ("exact_match_normalised", "...", ["?", "a"], 100),
        ("exact_match_normalised", "", ["a"], 0),
        ("exact_match_normalised", "", [""], 100),
    ],
)  # fmt: skip
def test_by_hand(name, prediction, references, expected):
    # The package's epsilon takes the last digits from ROUGE-L.
    assert one(name, prediction, *references) == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert max(BY_PACKAGE[name](prediction, one) for one in references) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_the_generic_metrics_say_otherwise():
    assert one("rouge_l", "the the the plan", "the plan") == pytest.approx(200 / 3)
    assert one("edit_similarity", "return 0", "return <NUM_LIT:0>") < 70
    assert one("exact_match", "Good.", "good") == 0


def test_an_empty_answer_is_a_space_under_sari(shared):
    rows = rows_of(shared / "data" / "trace" / "20Minuten", most=40)
    prompts, references = zip(*rows)
    expected = [hugging_face_sari(prompt, " ", reference) for prompt, reference in rows]
    for nothing in ("", " ", "\n"):
        scores = get_metric("sari_trace").score([nothing] * len(rows), [[one] for one in references], prompts)
        assert scores == pytest.approx(expected)
    # fidelity: a model that has collapsed keeps about 38 points here.
    assert 30 < sum(expected) / len(expected) < 45


def test_texts_are_scored_that_the_package_cannot_take():
    words = [f"w{number}" for number in range(1500)]
    text = " ".join(words)
    with pytest.raises(RecursionError):
        Rouge(metrics=["rouge-l"]).get_scores("w0", text)
    assert one("rouge_l_trace", text, text) == pytest.approx(100)
    # P 500 of 500, R 500 of 1500: 2/3 / 4/3. The other way round it is the same.
    assert one("rouge_l_trace", " ".join(words[::3]), text) == pytest.approx(50)
    assert one("rouge_l_trace", text, " ".join(words[::3])) == pytest.approx(50)
    with pytest.raises(ValueError, match="Collections must contain"):
        Rouge(metrics=["rouge-l"]).get_scores("...", "a")
    assert rouge_package("...", "a") == one("rouge_l_trace", "...", "a") == 0

"""Every metric on cases worked out by hand."""

import pytest

from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation import METRICS, get_metric
from seekr_cl.evaluation.text import words


def one(name: str, prediction: str, *references: str, prompt: str = "") -> float:
    return get_metric(name).score([prediction], [references], [prompt])[0]


PAPERS = ("exact_match_normalised", "rouge_l_trace", "rouge_l_sapt", "edit_similarity_py150", "sari_trace")
FIELDS = [name for name in METRICS if name not in (*PAPERS, "refusal")]
"""Metrics that compare texts and are no paper's own; what those do with empty texts is in test_published."""


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("nothing", ["", "  \n\t "])
def test_nothing_is_right_where_nothing_is_expected_and_only_there(name, nothing):
    assert one(name, nothing, "", prompt="a b") == 100
    assert one(name, nothing, "a", " ", prompt="a b") == 100
    assert one(name, nothing, "a", "b", prompt="a b") == 0
    assert one(name, "x", nothing, prompt="a b") == 0
    assert one(name, "a b", nothing, "a b", prompt="a b") == pytest.approx(100)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("text", ["the cat sat on a mat", "我喜欢猫", "Straße 7", "नमस्ते दुनिया", "x = f(y)[0]"])
def test_the_reference_itself_scores_a_hundred(name, text):
    if name == "rouge_l_sapt" and not text.isascii():
        assert one(name, text, text) == pytest.approx(100 * (text == "Straße 7"))  # a-z and 0-9 are its only words
        return
    # The source is the answer too: whatever SARI looks for, keeping everything is right.
    assert one(name, text, text, prompt=text) == pytest.approx(100)


@pytest.mark.parametrize("name", METRICS)
def test_every_example_has_its_own_score_and_the_order_is_kept(name):
    scores = get_metric(name).score(["a b", "", "c d"], [["a b"], ["a b"], ["c d"]], ["a b", "a b", "c d"])
    # To sari_trace the middle one is an empty word: nothing of two unigrams, a third of the bigrams, all of the rest.
    middle = 100 * (0 + 1 / 3 + 1 + 1) / 4 if name == "sari_trace" else 0
    assert scores == pytest.approx([100, middle, 100])


@pytest.mark.parametrize(
    ("name", "prediction", "references", "expected"),
    [
        ("exact_match", " 7\n", ["7"], 100),
        ("exact_match", "7.0", ["7"], 0),
        ("exact_match", "A. dovish", ["A"], 0),
        ("exact_match", "yes", ["Yes"], 0),
        ("exact_match", "支持", ["反对", "支持"], 100),
        ("accuracy", "b", ["a", "b"], 100),
        ("first_character", " B. because of the heat", ["B"], 100),
        ("first_character", "Because A", ["B"], 100),  # the published metric looks no further either
        ("first_character", "b", ["B"], 0),
        ("first_character", "中国", ["中立"], 100),
        ("first_character", "D", ["A", "D"], 100),
        ("first_word", "Yes, it is.", ["yes"], 100),
        ("first_word", "Yesterday", ["yes"], 0),
        ("first_word", '"No."', ["no way"], 100),
        ("first_word", "STRASSE 5", ["Straße"], 100),
        ("first_word", "it is yes", ["yes", "it"], 100),
        ("first_word", "...", ["!?"], 0),  # two words of punctuation are not both nothing
        ("first_word", "...", ["..."], 100),
        # Longest common subsequence "the cat on mat" has 4 words: P = 4/4, R = 4/6, F = 2PR/(P+R) = 0.8.
        ("rouge_l", "the cat on mat", ["the cat sat on the mat"], 80),
        # The better of two: with "on the cat mat" LCS is "the cat mat" = "on the mat" = 3 of 4 and 4, F = 3/4.
        ("rouge_l", "the cat on mat", ["dog", "on the cat mat"], 75),
        ("rouge_l", "The CAT.", ["the cat"], 100),
        # A Chinese character is a word: LCS 我 猫 = 2, P = 2/3, R = 2/4, F = 4/7.
        ("rouge_l", "我爱猫", ["我喜欢猫"], 400 / 7),
        # ... also behind digits and letters: 2020 年 against 2020 月 is one of two.
        ("rouge_l", "2020年", ["2020月"], 50),
        ("rouge_l", "Tschüss", ["Tschss"], 0),
        # Deletions and insertions that turn one into the other: d -> e is 2 of 4 + 4 characters, 1 - 2/8.
        ("edit_similarity", "abcd", ["abce"], 75),
        ("edit_similarity", "abcd", ["xyz", "abcd"], 100),
        ("edit_similarity", "ab", ["cd"], 0),
        ("edit_similarity", "中文", ["中国"], 50),
        # Words as often as they stand: "b b" is common, 2 * 2 / (3 + 3).
        ("f1", "a b b", ["b b c"], 200 / 3),
        ("f1", "c b, A!", ["a b c"], 100),
        ("f1", "a", ["b", "a b"], 200 / 3),
        ("macro_f1", " yes", ["no", "yes"], 100),  # of one example only its own class is expected
        ("macro_f1", "Yes", ["yes"], 0),
        # Vowel signs belong to the word: কি and কে differ.
        ("f1", "কি", ["কে"], 0),
    ],
)
def test_by_hand(name, prediction, references, expected):
    assert one(name, prediction, *references) == pytest.approx(expected)


def macro(predictions, references) -> float:
    metric = get_metric("macro_f1")
    return metric.tally(predictions, references, metric.score(predictions, references, [""] * len(predictions))).score


def test_macro_f1_is_a_number_of_the_whole_task():
    gold = [["甲"], ["甲"], ["甲"], ["乙"]]
    # 甲: TP 2, predicted 2, expected 3: 4/5. 乙: TP 1, predicted 2, expected 1: 2/3. Exact match would be 75.
    assert macro(["甲", " 甲\n", "乙", "乙"], gold) == pytest.approx(100 * (4 / 5 + 2 / 3) / 2)
    # Texts that are no class add none: 甲 2/(1 + 3), 乙 0/(0 + 1).
    assert macro(["甲", "what?", "", "丙"], gold) == pytest.approx(100 * (2 / 4 + 0) / 2)
    # The second of two references is a class when it is given and nowhere else: yes 2/(1 + 1), no 2/(1 + 1).
    assert macro(["yes", "no"], [["no", "yes"], ["no"]]) == pytest.approx(100)
    # Nothing may be a class like any other: 1 and 0. Where it is none, it is an answer that is no class.
    assert macro(["", "x"], [["", "a"], ["a"]]) == pytest.approx(50)
    assert macro(["", "a"], [["b"], ["a"]]) == pytest.approx(50)


def test_macro_f1_is_for_labels():
    with pytest.raises(DataError, match="macro_f1: 1001 different references"):
        macro(["x"] * 1001, [[str(number)] for number in range(1001)])


def test_words_keep_scripts_whole():
    assert words("Zürich, 3 Äpfel_x") == ["zürich", "3", "äpfel", "x"]
    assert words("GPT4出来了ＡＢ") == ["gpt4", "出", "来", "了", "ab"]  # full width is made plain
    assert words("カタカナ𠀀") == ["カ", "タ", "カ", "ナ", "𠀀"]
    assert words("नमस्ते ไม้ عَرَبي") == ["नमस्ते", "ไม้", "عَرَبي"]
    assert words("?!_ …") == []


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("rouge", "rouge_l"), ("exactmatch", "exact_match"), ("edit_similarty", "edit_similarity")]
)
def test_an_unknown_metric_names_the_nearest_and_all(wrong, nearest):
    with pytest.raises(ConfigError, match=f"'{wrong}' is unknown; did you mean '{nearest}'") as caught:
        get_metric(wrong)
    assert all(name in str(caught.value) for name in METRICS)
    assert "\n" not in str(caught.value)

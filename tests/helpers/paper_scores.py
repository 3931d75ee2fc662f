"""Scores by the packages that the papers' code calls, and answers to score: real references with seeded noise."""

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fuzzywuzzy import fuzz
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

NOISE = ((0.0, 0.0), (0.15, 0.1), (0.4, 0.3), (0.7, 0.6), (1.0, 0.0))
"""Shares of words dropped and inserted: from the reference itself to nothing at all."""


def rows_of(folder: Path, most: int = 24) -> list[tuple[str, str]]:
    """Prompts and references of a task's test rows: as many of them, spread over the file."""
    rows = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    return [(row["prompt"], row["answer"]) for row in rows[:: max(1, len(rows) // most)]]


def noisy(text: str, drop: float, insert: float, seed: int) -> str:
    """The text with words dropped and words of its own inserted; white space stays what it was."""
    drawn = random.Random(seed)
    parts = re.split(r"(\s+)", text)
    words, spaces = parts[::2], [*parts[1::2], ""]
    made = []
    for word, space in zip(words, spaces):
        if drawn.random() >= drop:
            made.append(word + space)
        if drawn.random() < insert:
            made.append(drawn.choice(words) + " ")
    return "".join(made)


def rouge_package(prediction: str, reference: str) -> float:
    """As TRACE's and SEEKR's ``score_rouge`` calls it: the reference first. Their code passes over empty texts."""
    if "" in (prediction, reference):
        return 0.0
    try:
        return 100 * Rouge(metrics=["rouge-l"]).get_scores(reference, prediction, avg=True)["rouge-l"]["f"]
    except ValueError:  # no sentence in one of them; SEEKR's code takes it for 0
        return 0.0


def fuzzywuzzy_package(prediction: str, reference: str) -> float:
    """``fuzz.ratio`` of what is left once Py150's literals are plain."""

    def plain(code: str) -> str:
        code = re.sub(r"<(?:STR|CHAR)_LIT>", "", re.sub("<NUM_LIT>", "0", code))
        return re.sub(r"(?s)<(?:NUM|STR|CHAR)_LIT:(.*?)>", lambda found: found[1], code)

    made, wanted = plain(prediction), plain(reference)
    return float(fuzz.ratio(made, wanted)) if made and wanted else 0.0


def stemmed_rouge(prediction: str, reference: str) -> float:
    """rouge-score as SAPT calls it."""
    return 100 * RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure


def normalised_match(prediction: str, reference: str) -> float:
    """O-LoRA's and SAPT's exact match."""

    def plain(text: str) -> list[str]:
        return re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower()).split()

    return 100.0 * (plain(prediction) == plain(reference))


def hugging_face_sari(source: str, prediction: str, reference: str) -> float:
    """SARI of one reference by the definition of Hugging Face's metric: n-grams are texts, an empty text is a word."""
    total = 0.0
    for order in range(1, 5):
        s, c, r = (_grams(text, order) for text in (source, prediction, reference))
        kept, wanted = s & c, s & r
        right = kept & r
        precision = sum(right[gram] / kept[gram] for gram in kept) / len(kept) if kept else 1
        recall = sum(right.values()) / sum(wanted.values()) if wanted else 1
        keep = 2 * precision * recall / (precision + recall) if precision + recall else 0
        gone, rightly = s - c, s - c - r
        delete = sum(rightly[gram] / gone[gram] for gram in gone) / len(gone) if gone else 1
        new, asked = set(c) - set(s), set(r) - set(s)
        good = len(new & set(r))
        precision, recall = good / len(new) if new else 1, good / len(asked) if asked else 1
        add = 2 * precision * recall / (precision + recall) if precision + recall else 0
        total += (keep + delete + add) / 12
    return 100 * total


def _grams(text: str, order: int) -> Counter[str]:
    words = Tokenizer13a()(text.lower()).split(" ")
    return Counter(" ".join(words[at : at + order]) for at in range(len(words) - order + 1))


BY_PACKAGE: dict[str, Callable[[str, str], float]] = {
    "rouge_l_trace": rouge_package,
    "edit_similarity_py150": fuzzywuzzy_package,
    "rouge_l_sapt": stemmed_rouge,
    "exact_match_normalised": normalised_match,
}
"""Metrics that look at no prompt: what their papers' packages say of (prediction, reference)."""

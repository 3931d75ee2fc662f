"""How an answer is scored: every metric gives each example 0 to 100, and a task their mean or a number of its own.

The field's metrics are alike in one thing: an empty answer is right where an empty one is expected, and nowhere else.
The papers' own (``published``) do with it what their code does.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from seekr_cl.errors import ConfigError, nearest
from seekr_cl.evaluation import published
from seekr_cl.evaluation.classes import class_columns, macro_f1
from seekr_cl.evaluation.refusal import refusal
from seekr_cl.evaluation.sari import sari
from seekr_cl.evaluation.statistics import Array, Combine, Tally, mean_of
from seekr_cl.evaluation.text import UnicodeTokenizer, published_words, words

ExampleScore = Callable[[str, Sequence[str], str], float]
Columns = Callable[[Sequence[str], Sequence[Sequence[str]]], Array]


@dataclass(frozen=True, slots=True)
class Metric:
    """A way to score.

    Attributes:
        name: what configs call it.
        about: one sentence.
        score_one: (prediction, references, prompt) to 0..100.
        columns: for a metric of a whole task, what an example adds: (predictions, references) to numbers (N, C).
        combine: a task's score from the sums of its examples' columns and their number; the mean, without ``columns``.
        reads_prompt: whether a score depends on the prompt.
    """

    name: str
    about: str
    score_one: ExampleScore
    columns: Columns | None = None
    combine: Combine = mean_of
    reads_prompt: bool = False

    def score(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], prompts: Sequence[str]
    ) -> list[float]:
        """Each example's score, 0 to 100."""
        return [
            self.score_one(prediction, accepted, prompt)
            for prediction, accepted, prompt in zip(predictions, references, prompts, strict=True)
        ]

    def tally(self, predictions: Sequence[str], references: Sequence[Sequence[str]], scores: Sequence[float]) -> Tally:
        """A task's answers as numbers that can be summed up, resampled and swapped; ``scores`` are the examples'."""
        if self.columns is None:
            return Tally(np.array(scores, dtype=float)[:, None], self.combine)
        return Tally(self.columns(predictions, references), self.combine)


def _with_empty(score_one: ExampleScore) -> ExampleScore:
    """Settles empty texts, so that ``score_one`` sees none: each equals every other and nothing else."""

    def score(prediction: str, references: Sequence[str], prompt: str) -> float:
        written = [reference for reference in references if reference.strip()]
        if not prediction.strip():
            return 100.0 * (len(written) < len(references))
        return score_one(prediction, written, prompt) if written else 0.0

    return score


def _best(compare: Callable[[str, str], float]) -> ExampleScore:
    return _with_empty(lambda prediction, accepted, _: max(compare(prediction, reference) for reference in accepted))


def _same(reduce: Callable[[str], str]) -> ExampleScore:
    return _best(lambda prediction, reference: 100.0 * (reduce(prediction) == reduce(reference)))


def _first_word(text: str) -> str:
    parts = text.split()
    # A word of punctuation alone is itself, or every such word would equal every other.
    return (parts[0].strip(".,;:!?\"'()") or parts[0]).casefold() if parts else ""


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())


def _rouge_l(prediction: str, reference: str) -> float:
    return 100 * _rouge().score(reference, prediction)["rougeL"].fmeasure


def _f1(prediction: str, reference: str) -> float:
    ours, theirs = Counter(words(prediction)), Counter(words(reference))
    common = (ours & theirs).total()
    return 200 * common / (ours.total() + theirs.total()) if common else 0.0


def _sari(prediction: str, references: Sequence[str], prompt: str) -> float:
    return sari(published_words(prompt), published_words(prediction), [published_words(text) for text in references])


_ALL = (
    Metric("exact_match", "100 if the answer equals a reference, spaces around it aside", _same(str.strip)),
    Metric(
        "exact_match_normalised",
        "exact match without case, ASCII punctuation and repeated spaces (O-LoRA, SAPT)",
        published.exact_match_normalised,
    ),
    Metric(
        "first_character",
        "100 if the first character equals a reference's (SEEKR's C-STANCE, FOMC and ScienceQA)",
        _same(lambda t: t.strip()[:1]),
    ),
    Metric("first_word", "100 if the first word equals a reference's, whatever its case", _same(_first_word)),
    Metric("rouge_l", "ROUGE-L F1 by rouge-score over Unicode words, best reference", _best(_rouge_l)),
    Metric(
        "rouge_l_trace",
        "ROUGE-L F1 of the package rouge 1.0.1: union over sentences, sets of words (TRACE, SEEKR)",
        published.rouge_l_trace,
    ),
    Metric(
        "rouge_l_sapt", "ROUGE-L F1 of rouge-score with its stemmer, a-z and 0-9 only (SAPT)", published.rouge_l_sapt
    ),
    Metric("edit_similarity", "rapidfuzz ratio of characters, best reference", _best(fuzz.ratio)),
    Metric(
        "edit_similarity_py150",
        "fuzzywuzzy ratio, a whole number, with Py150's literals written out (TRACE, SEEKR)",
        published.edit_similarity_py150,
    ),
    Metric("sari", "SARI with the whole prompt as source", _with_empty(_sari), reads_prompt=True),
    Metric(
        "sari_trace",
        "SARI by Hugging Face with the whole prompt as source; an empty answer is a space (TRACE, SEEKR)",
        published.sari_trace,
        reads_prompt=True,
    ),
    Metric("f1", "F1 of words, best reference", _best(_f1)),
    Metric("refusal", "100 if the answer refuses where 'refuse' is expected and answers where it is not", refusal),
    Metric(
        "macro_f1",
        "mean over the references' classes of the F1 of each; an example alone counts as in exact_match",
        _same(str.strip),
        class_columns,
        macro_f1,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
METRICS["accuracy"] = METRICS["exact_match"]


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ConfigError: naming the nearest known one.
    """
    if name not in METRICS:
        raise ConfigError(f"metric: '{name}' is unknown{nearest(name, METRICS)} (known: {', '.join(METRICS)})")
    return METRICS[name]

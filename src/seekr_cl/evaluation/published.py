"""Scores as the papers' own code prints them, each checked against the package that this code uses.

Nothing is made better here, neither empty answers nor texts without words: whatever differs from the field's usual
metrics (``metrics``) is the paper's. Where a paper has one reference and a data set has several, the best one counts.
"""

import re
import string
from collections.abc import Sequence
from functools import cache
from typing import Any

from rapidfuzz.distance import Indel

from seekr_cl.evaluation.sari import sari
from seekr_cl.evaluation.summary_rouge import best_summary_rouge_l
from seekr_cl.evaluation.text import tokens_13a

_LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_EMPTY_LITERALS = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l_trace(prediction: str, references: Sequence[str], prompt: str = "") -> float:
    """ROUGE-L of TRACE and SEEKR (``utils/metrics.py``): the package ``rouge`` 1.0.1; see ``summary_rouge``.

    0 for an empty text and for one without a sentence, such as ``...``, where TRACE's own code stops with an error.
    """
    return best_summary_rouge_l(prediction, references)


@cache
def _stemming_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_sapt(prediction: str, references: Sequence[str], prompt: str = "") -> float:
    """ROUGE-L of SAPT (``compute_metrics.py``): rouge-score with Porter's stemmer, and only a-z and 0-9 are words."""
    scorer = _stemming_scorer()
    return 100.0 * max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references)


def plain_literals(code: str) -> str:
    """Py150's placeholders written out: ``<NUM_LIT>`` is 0, ``<STR_LIT>`` nothing, ``<STR_LIT:x>`` x.

    From TRACE's and SEEKR's ``eval_Py150.py``. Written one after the other, as there: a literal that another one's
    content completes is replaced too if the text held the same one before.
    """
    for placeholder, value in _EMPTY_LITERALS.items():
        code = code.replace(placeholder, value)
    for kind, value in _LITERAL.findall(code):
        code = code.replace(f"<{kind}_LIT:{value}>", value)
    return code


def edit_similarity_py150(prediction: str, references: Sequence[str], prompt: str = "") -> float:
    """Py150's similarity in TRACE and SEEKR: fuzzywuzzy's ``ratio``, a whole number, of ``plain_literals``.

    0 where one of the two is empty once its literals are written out.
    """
    return max(_ratio(plain_literals(prediction), plain_literals(reference)) for reference in references)


def _ratio(first: str, second: str) -> float:
    # round() takes halves to the even number, as fuzzywuzzy does.
    return float(round(100 * Indel.normalized_similarity(first, second))) if first and second else 0.0


def exact_match_normalised(prediction: str, references: Sequence[str], prompt: str = "") -> float:
    """Exact match of O-LoRA and SAPT (``compute_metrics.py``): lower case, no ASCII punctuation, single spaces.

    Texts of punctuation alone equal each other and the empty text.
    """
    return 100.0 * (_normalised(prediction) in {_normalised(reference) for reference in references})


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def sari_trace(prediction: str, references: Sequence[str], prompt: str) -> float:
    """SARI of TRACE and SEEKR: Hugging Face's, the whole prompt as the source.

    An empty text is one empty word. So an empty answer has deleted everything, and most of that rightly: it scores
    some 38 points on 20Minuten.
    """
    return sari(tokens_13a(prompt), tokens_13a(prediction), [tokens_13a(reference) for reference in references])

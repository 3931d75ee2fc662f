"""Words of a text, for metrics that must not drop scripts without spaces."""

import re
import unicodedata

_SINGLE = "㐀-䶿一-鿿豈-﫿぀-ヿ\U00020000-\U0003ffff"
"""Chinese characters and Japanese kana, which stand for a word each."""


def words(text: str) -> list[str]:
    """Lower-case words; Chinese characters and Japanese kana are a word each, in whatever company.

    rouge-score's own tokenizer keeps only a-z and 0-9, so a Chinese or German answer would lose most of itself.
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    # Vowel signs of Indian and Thai script are marks, which \\w leaves out: words would break at them and lose them.
    marks = "".join(sorted(sign for sign in set(plain) if unicodedata.category(sign).startswith("M")))
    return re.findall(f"[{_SINGLE}]|(?:[^\\W_{_SINGLE}]|[{marks}])+" if marks else f"[{_SINGLE}]|[^\\W_{_SINGLE}]+", plain)


class UnicodeTokenizer:
    """``words`` in the shape rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        """Words of the text."""
        return words(text)


def published_words(text: str) -> list[str]:
    """Lower-case words by sacrebleu's 13a rules, as the published SARI cuts them: punctuation counts.

    Chinese characters and Japanese kana, which 13a would leave in one piece, are a word each here too.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return re.sub(f"([{_SINGLE}])", r" \1 ", Tokenizer13a()(text.lower())).split()

"""Words of a text, for metrics that must not drop scripts without spaces."""

import re
import unicodedata

_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]|[^\W_]+", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower-case words; Chinese characters and Japanese kana are a word each.

    rouge-score's own tokenizer keeps only a-z and 0-9, so a Chinese or German answer would lose most of itself.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class UnicodeTokenizer:
    """``words`` in the shape rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        """Words of the text."""
        return words(text)

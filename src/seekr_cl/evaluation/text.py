"""Words of a text, for metrics that must not drop scripts without spaces."""

import re
import unicodedata

# Chinese characters, also the compatibility ones and those beyond the first plane, and Japanese kana.
_SINGLE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def words(text: str) -> list[str]:
    """Lower-case words; Chinese characters and Japanese kana are a word each, in whatever company.

    rouge-score's own tokenizer keeps only a-z and 0-9, so a Chinese or German answer would lose most of itself.
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    # The vowel signs of Indian and Thai scripts are marks and no letters: words would break there and lose them.
    marks = "".join(sorted(sign for sign in set(plain) if unicodedata.category(sign).startswith("M")))
    letter = rf"[^\W_{_SINGLE}]"
    return re.findall(rf"[{_SINGLE}]|(?:{letter}|[{marks}])+" if marks else rf"[{_SINGLE}]|{letter}+", plain)


class UnicodeTokenizer:
    """``words`` in the shape rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        """Words of the text."""
        return words(text)


def published_words(text: str) -> list[str]:
    """Lower-case words by sacrebleu's 13a rules, as SARI is usually computed: punctuation counts.

    Chinese characters and Japanese kana, which 13a would leave in one piece, are a word each here.
    """
    return re.sub(f"([{_SINGLE}])", r" \1 ", _cut_13a(text)).split()


def tokens_13a(text: str) -> list[str]:
    """``published_words`` without the care for Chinese and Japanese; an empty text has one token, the empty one."""
    return _cut_13a(text).split(" ")


def _cut_13a(text: str) -> str:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return str(Tokenizer13a()(text.lower()))

"""What a tokenizer does to a text on its way: characters it has no token for, and what it writes otherwise."""

import unicodedata
import warnings
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.tasks.keys import DataWarning


class TextGuard:
    """Compares texts with their tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        unknown = tokenizer.unk_token_id
        # GPT-2 and its like name the end of text as the unknown token and never write it for one.
        self._unknown = None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._known: set[str] = set()
        self._warned = False

    def check_answer(self, text: str, ids: list[int], where: str) -> None:
        """Refuses an answer of which something would not be learned, or that ends before its end.

        Args:
            text: The answer.
            ids: Its tokens, without an end-of-text token behind them.
            where: The file and row, for error messages.

        Raises:
            DataError: naming what is lost.
        """
        self.check_learnt(text, ids, where)
        eos, bos = self._tokenizer.eos_token_id, self._tokenizer.bos_token_id
        if eos is not None and eos in ids[:-1]:
            raise DataError(
                f"{where}: the answer holds the end-of-text token {self._tokenizer.eos_token!r} before its end, and "
                "nothing after it could ever be written; remove it"
            )
        if bos is not None and bos != eos and ids[:1] == [bos]:
            raise DataError(
                f"{where}: the answer begins with the token {self._tokenizer.bos_token!r} that begins a text; remove it"
            )

    def check_learnt(self, text: str, ids: list[int], where: str) -> None:
        """Refuses a text to be learned of which some characters have no tokens.

        Raises:
            DataError: naming them.
        """
        if lost := self._lost(text, ids):
            raise DataError(
                f"{where}: the tokenizer has no token for {lost!r} of the answer {text[:40]!r}; remove the row, or use "
                "a model whose tokenizer has"
            )

    def check_prompt(self, text: str, ids: list[int], where: str) -> None:
        """Warns once of a prompt that the model will not see whole."""
        if not self._warned and (lost := self._lost(text, ids)):
            self._warned = True
            warnings.warn(
                f"{where}: the tokenizer has no token for {lost!r} of the prompt, which the model does not see; other "
                "rows may hold more",
                DataWarning,
                stacklevel=3,
            )

    def as_read(self, text: str) -> str:
        """A reference as the tokenizer writes it, normalized or in lower case: no model can write it otherwise."""
        ids = self._ids(text)
        if self._unknown in ids:
            return text
        written = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return written if written.strip() else text

    def length(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _lost(self, text: str, ids: list[int]) -> str:
        """Characters that no token stands for, each once."""
        # Written out in the text, it is what the text says.
        if self._unknown is not None and self._unknown in ids and self._tokenizer.unk_token not in text:
            return self._pieces(text) or text[:40]
        new = {char for char in text if _counts(char)} - self._known
        if not new or self._backend is None:
            return ""
        lost = {char for char in new if self._vanishes(char)}
        self._known |= new - lost
        return "".join(dict.fromkeys(char for char in text if char in lost))

    def _pieces(self, text: str) -> str:
        """The parts of a text that became the unknown token, each once: characters, or whole words."""
        if self._backend is None:
            return ""
        coded = self._backend.encode(text, add_special_tokens=False)
        parts = (text[begin:end] for one, (begin, end) in zip(coded.ids, coded.offsets) if one == self._unknown)
        return "".join(dict.fromkeys(parts)).strip()

    def _vanishes(self, char: str) -> bool:
        # Between letters, for what stands alone may be tokenized by other rules.
        covered = self._backend.encode(f"a{char}a", add_special_tokens=False).offsets
        return not any(begin <= 1 < end for begin, end in covered) and not self._ids(char)


def _counts(char: str) -> bool:
    """Whether a text is another without the character: spaces, accents on letters and controls may be normalized."""
    return unicodedata.category(char)[0] not in "ZMC"

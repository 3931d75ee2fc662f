"""The answer in what a chat model wrote: without think block, channel headers and the template's other markers."""

from typing import Any

from seekr_cl.tasks.chat_rendering import Renderer
from seekr_cl.tasks.chat_template import ChatSettings

_CLOSING = ("</think>",)
_OPENING = ("<think>",)


def turn_ends(tokenizer: Any) -> list[int]:
    """The token that ends a turn of a tokenizer's chat template; none where there is no template or no such token."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    ending = Renderer(tokenizer, ChatSettings()).turn.ending.strip()
    ids = tokenizer(ending, add_special_tokens=False)["input_ids"] if ending else []
    known = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    return [int(one) for one in ids[-1:] if one in known]


class AnswerReader:
    """Reads answers as a chat template writes them.

    Args:
        tokenizer: a Hugging Face tokenizer.
        renderer: of its template.
    """

    def __init__(self, tokenizer: Any, renderer: Renderer) -> None:
        self._tokenizer, self._renderer = tokenizer, renderer
        self._marks: tuple[list[str], list[str]] | None = None

    @property
    def needs_markers(self) -> bool:
        """Whether what divides thinking from answer is a special token, which plain decoding leaves out."""
        special = set(self._special())
        return any(token in mark for marks in self._marks_of() for mark in marks for token in special)

    def read(self, text: str, prompt: str = "", stripped: bool = False) -> str:
        """The answer in a text.

        Args:
            text: what the model wrote, up to its end.
            prompt: what it was shown; thinking may begin there.
            stripped: also without special tokens, where the text still has them.

        Returns:
            What follows the last marker between thinking and answer; nothing where the model never stopped thinking.
        """
        closing, opening = self._marks_of()
        ends = [text.rfind(mark) + len(mark) for mark in closing if mark in text]
        if ends:
            text = text[max(ends) :]
        elif any(text.lstrip().startswith(mark) or prompt.rstrip().endswith(mark) for mark in opening):
            text = ""
        if self.needs_markers or stripped:
            for token in self._special():
                text = text.replace(token, "")
        return text.strip() if ends or stripped else text

    def _special(self) -> list[str]:
        added = self._tokenizer.added_tokens_decoder if hasattr(self._tokenizer, "added_tokens_decoder") else {}
        found = {str(token) for token in added.values() if token.special} | set(self._tokenizer.all_special_tokens)
        return sorted(found, key=len, reverse=True)

    def _marks_of(self) -> tuple[list[str], list[str]]:
        """What stands before an answer, and what before thinking."""
        if self._marks is None:
            turn = self._renderer.turn
            marker = self._renderer.template.marker
            # Plain words around an answer may stand in an answer too.
            closing = {mark for mark in (turn.closing.strip(), turn.before.strip(), *_CLOSING) if marker.search(mark)}
            opening = {mark for mark in (turn.opening.strip(), *_OPENING) if marker.search(mark)}
            self._marks = sorted(closing), sorted(opening)
        return self._marks

"""A text's tokens, and which of them lie in given runs of its characters."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from seekr_cl.tasks.collate import Spans


def tokenised(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], Spans]:
    """Tokens of a text without special tokens around it, and begin and end of some runs of characters in tokens.

    Where a token would reach over the beginning or the end of a run, the text is tokenized in two parts there, as it is
    when the model is asked: the prompt ends where the answer begins. A token that takes white space behind a run's end
    with it belongs to the run, since some end-of-turn tokens do.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the text.
        spans: begin and end of each run, in characters, in order.
    """
    if not getattr(tokenizer, "is_fast", False):
        return _in_parts(tokenizer, text, spans)
    ids, offsets = _offsets(tokenizer, text, 0)
    borders = sorted({place for span in spans for place in span})
    begins = [begin for begin, _ in spans]
    cuts = [0]
    for border in borders:
        over = [(a, b) for a, b in _around(offsets, border) if a < border < b]
        if over and not (border not in begins and text[border : over[0][1]].isspace()):
            cuts.append(border)
    if len(cuts) > 1:
        ids, offsets = [], []
        for begin, end in zip(cuts, [*cuts[1:], len(text)]):
            part = _offsets(tokenizer, text[begin:end], begin)
            ids, offsets = ids + part[0], offsets + part[1]
    starts = [begin for begin, _ in offsets]
    return ids, tuple((bisect_left(starts, begin), bisect_left(starts, end)) for begin, end in spans)


def _offsets(tokenizer: Any, text: str, shift: int) -> tuple[list[int], list[tuple[int, int]]]:
    # verbose=False: a text longer than the model is cut on purpose, which needs no warning.
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(made["input_ids"]), [(begin + shift, end + shift) for begin, end in made["offset_mapping"]]


def _around(offsets: list[tuple[int, int]], border: int) -> list[tuple[int, int]]:
    """The tokens among which one may reach over the border."""
    place = bisect_left(offsets, (border, border))
    return offsets[max(0, place - 4) : place + 1]


def _in_parts(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], Spans]:
    """Without offsets every run is tokenized by itself."""
    ids: list[int] = []
    found = []
    former = 0
    for begin, end in spans:
        ids += tokenizer(text[former:begin], add_special_tokens=False, verbose=False)["input_ids"]
        first = len(ids)
        ids += tokenizer(text[begin:end], add_special_tokens=False, verbose=False)["input_ids"]
        found.append((first, len(ids)))
        former = end
    ids += tokenizer(text[former:], add_special_tokens=False, verbose=False)["input_ids"]
    return ids, tuple(found)

"""Text from data as a page or a terminal shows it: what would act on the reader, or be invisible, is written out."""

import re

LONGEST = 1200
"""Characters of one text that are shown: its beginning and its end."""
_TAIL = 400
# C0 and C1 controls but for tab and newline, marks of direction, joiners and other characters without a width, lone
# surrogates, noncharacters: a reader would not see them, a parser or a terminal would obey some of them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def visible(text: object) -> str:
    """The text with every hidden character written as ``⟨U+202E⟩``; escaping it for HTML is the template's."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", str(text))


def one_line(text: object, longest: int | None = 80) -> str:
    """A name on one line, cut in the middle where it is long: names of a family differ at their ends.

    Args:
        text: any text.
        longest: characters at the most; None cuts nothing.
    """
    line = " ".join(visible(text).split())
    if longest is None or len(line) <= longest:
        return line
    return f"{line[: longest - longest // 3 - 1]}…{line[-(longest // 3) :]}"


def excerpt(text: object, longest: int = LONGEST) -> tuple[str, int]:
    """A long text's beginning and end, and how many characters between them are left out.

    Args:
        text: any text.
        longest: characters that are shown at the most.
    """
    whole = str(text)
    left_out = len(whole) - longest
    if left_out <= 0:
        return visible(whole), 0
    tail = min(_TAIL, longest // 3)
    return f"{visible(whole[: longest - tail])} […] {visible(whole[-tail:])}", left_out

"""Text from data as a page or a terminal shows it: what would act on the reader, or be invisible, is written out."""

import re

LONGEST = 1200
"""Characters of one text that are shown: its beginning and its end."""
_TAIL = 400
# C0 and C1 controls but for tab and newline, marks of direction, joiners and other characters without a width, lone
# surrogates, noncharacters: a reader would not see them, a parser or a terminal would obey some of them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: object) -> str:
    """The text with every hidden character written as ``⟨U+202E⟩``; escaping it for HTML is the template's."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", str(text))


def one_line(text: object, longest: int = 80) -> str:
    """A name on one line, cut in the middle where it is long: names of a family differ at their ends."""
    line = " ".join(visible(text).split())
    return line if len(line) <= longest else f"{line[: longest - longest // 3 - 1]}…{line[-(longest // 3) :]}"


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

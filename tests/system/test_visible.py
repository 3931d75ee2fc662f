"""What a terminal would act on, or nobody would see, is written out; and bytes are told in one way."""

import pytest

from seekr_cl.system.sizes import size
from seekr_cl.system.visible import one_line, visible

HIDDEN = "\x1b\r\x7f\x9b\u00ad\u061c\u200b\u200d\u200e\u200f\u202e\u2066\u2069\u3164\ufeff\ufffe\ud800\U000e0041"


def test_hidden_signs_are_written_out() -> None:
    for sign in HIDDEN:
        assert visible(f"a{sign}b") == f"a⟨U+{ord(sign):04X}⟩b"
    kept = "naïve\tтекст\n漢字 🙂 \ufffd"
    assert visible(kept) == kept
    assert one_line("a\n\tb" + "c" * 100, None) == "a b" + "c" * 100


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (1_400_000, "1.4 MB"),
        (2e12, "2000.0 GB"),
    ],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said

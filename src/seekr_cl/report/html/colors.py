"""One scale of colors for everything that is more or less: cividis, which is even for every kind of color vision."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence

_STOPS = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120), (165, 156, 116),
    (195, 179, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip
"""Ten points of cividis: Nuñez, Anderton and Renslow, PLOS ONE 2018, doi:10.1371/journal.pone.0199239."""


def shade(part: float) -> tuple[int, int, int]:
    """The color of a part from 0 to 1."""
    place = min(1.0, max(0.0, part if math.isfinite(part) else 0.0)) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    return tuple(round(a + (b - a) * (place - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1]))  # type: ignore[return-value]


def hexadecimal(color: tuple[int, int, int]) -> str:
    """As CSS has it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def ink(color: tuple[int, int, int]) -> str:
    """Black or white, whichever is easier to read on it (WCAG's relative luminance)."""
    parts = [value / 255 for value in color]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"


def png(rows: Sequence[Sequence[tuple[int, int, int]]]) -> str:
    """A picture of one pixel a value, as a data URI: thousands of cells would be too many SVG elements."""
    height, width = len(rows), len(rows[0])
    raw = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

"""How commands print."""

from typing import Any

from rich.console import Console


def size(num_bytes: int) -> str:
    """Bytes in a unit that people read."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def out(quiet: bool = False) -> Console:
    """Where results go; nowhere where a program reads them as JSON."""
    # Names come from data: nothing in them is markup or an emoji.
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "quiet": quiet}
    console = Console(**plain)
    # A pipe has no width; a table squeezed into 80 columns is of no use to whoever reads the file.
    return console if console.is_terminal else Console(width=160, **plain)

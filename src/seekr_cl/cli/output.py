"""How commands print."""

from typing import Any

from rich.console import Console


def out(quiet: bool = False) -> Console:
    """Where results go; nowhere where a program reads them as JSON."""
    # Names come from data: nothing in them is markup or an emoji.
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "quiet": quiet}
    console = Console(**plain)
    # A pipe has no width; a table squeezed into 80 columns is of no use to whoever reads the file.
    return console if console.is_terminal else Console(width=160, **plain)

"""How commands show that they work: where a person reads, whether there is a terminal, and counting things."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_counts: Callable[[str, int, int], None] | None = None
"""Who shows what is counted, while a whole run is shown in one line."""


def show_counts(shown: Callable[[str, int, int], None] | None) -> None:
    """Lets somebody else show what is counted: called with label, done and total. ``None`` takes it back."""
    global _counts
    _counts = shown


def console() -> Console:
    """Where a person reads; standard error, so that results can be piped."""
    return Console(stderr=True, highlight=False)


def wants_bar(mode: str) -> bool:
    """Whether ``progress`` mode means a bar here."""
    return mode == "bar" or (mode == "auto" and sys.stderr.isatty())


@contextmanager
def counting(label: str, total: int, mode: str) -> Iterator[Callable[[int], None]]:
    """Shows how many of ``total`` things are done, on a terminal; elsewhere the result's own line is enough.

    Yields:
        What is to be called with the number done since the last call.
    """
    if not wants_bar(mode):
        yield lambda _done: None
        return
    if _counts is not None:
        done, shown = 0, _counts

        def add(count: int) -> None:
            nonlocal done
            done += count
            shown(label, done, total)

        yield add
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


def drop_printers(trainer: Any) -> None:
    """The Trainer's own printer would write every log line a second time."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)

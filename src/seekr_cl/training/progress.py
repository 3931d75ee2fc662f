"""Progress of training: a bar with loss terms and time left on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


class TrainingProgress(TrainerCallback):
    """Shows one task's training.

    Args:
        label: what is being trained.
        mode: ``auto``, ``bar``, ``lines`` or ``none``.
        lines: how many plain lines a task gets.
    """

    def __init__(self, label: str, mode: str = "auto", lines: int = 5) -> None:
        self.label, self.mode, self.lines = label, mode, lines
        self._bar: Progress | None = None
        self._task: Any = None
        self._shown = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the bar."""
        if wants_bar(self.mode):
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[terms]}"),
                console=console(),
            )
            self._task = self._bar.add_task(self.label, total=state.max_steps, terms="")
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Shows the loss terms."""
        terms = " ".join(
            f"{key.removeprefix('loss_')} {value:.3g}"
            for key, value in (logs or {}).items()
            if key.startswith("loss_") and not key.endswith("_total")
        )
        if not terms:
            return
        if self._bar is not None:
            self._bar.update(self._task, terms=terms)
            return
        part = state.global_step * self.lines // max(1, state.max_steps)
        if self.mode != "none" and part != self._shown:
            self._shown = part
            console().print(f"{self.label}: step {state.global_step}/{state.max_steps} {terms}", soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()


def drop_printers(trainer: Any) -> None:
    """The Trainer's own printer would write every log line a second time."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)

"""How a learning and a run are followed from their beginning to their end, whichever it is."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.errors import SeekrError, first_line
from seekr_cl.models.source import ModelSource
from seekr_cl.system.removal import remove_file
from seekr_cl.system.run_record import RECORD, beside, given_command, is_record
from seekr_cl.system.stop_requests import Stopped
from seekr_cl.tasks import Task
from seekr_cl.training.checkpoint import Checkpoints
from seekr_cl.training.tracker import Tracker, closed
from seekr_cl.version import __version__


def facts(model: str, config: SeekrConfig) -> dict[str, Any]:
    """What a record says first: what it is about and how it can be repeated."""
    command = given_command()
    versions = {"seekr-cl": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "model": model,
        "method": config.method.name,
        "seed": config.seed,
        "versions": versions,
        **({"command": command, "folder": os.getcwd()} if command else {}),
    }


@contextmanager
def following(tracker: Tracker) -> Iterator[None]:
    """Notes how it ended: done, stopped by a signal, or failed with a message."""
    try:
        yield
    except Stopped:
        closed(tracker, "stopped")
        raise
    except BaseException as error:
        # Other libraries' messages may quote the data.
        closed(tracker, "failed", first_line(error) if isinstance(error, SeekrError) else type(error).__name__)
        raise
    tracker.end()


@contextmanager
def followed(
    tracker: Tracker | None,
    source: ModelSource,
    tasks: Sequence[Task],
    memory: Path,
    output: Path,
    config: SeekrConfig,
    saves: Checkpoints,
) -> Iterator[Tracker]:
    """The tracker of a learning: a run's, or one of its own, whose record ends up in the output (``take_in``).

    Until then it lies beside the output, and stays there only with checkpoints to go on from.

    Args:
        tracker: a run's, if there is one.
        source: the model it begins with.
        tasks: what is learned.
        memory: the memory's folder.
        output: the new model's.
        config: all settings.
        saves: where checkpoints go.
    """
    if tracker is not None:
        yield tracker
        return
    own = Tracker(config.progress)
    own.number = 1
    work = sum(len(task.train) * (task.epochs or float(config.num_train_epochs)) for task in tasks)
    places = [os.path.relpath(memory.resolve(), output.resolve()), str(memory.resolve())]
    own.logs = output.parent / f"{output.name}.logs"
    try:
        with following(own):
            named = {"tasks": ["+".join(task.name for task in tasks)], "work": [work], "tests": 0, "memory": places}
            own.begin("learning", **facts(source.name, config), **named)
            own.write_at_training(beside(output))
            yield own
    except BaseException:
        # No collective: the others may be anywhere, and would never come to it.
        if collectives.is_main() and not saves.any():
            _drop(output)
        raise


def take_in(output: Path) -> None:
    """The record goes to where the model is; where that fails, it stays and is still found."""
    if is_record(beside(output)):
        with suppress(OSError):
            os.replace(beside(output), output / RECORD)


def _drop(output: Path) -> None:
    with suppress(OSError):
        if is_record(beside(output)):
            remove_file(beside(output), is_record)

"""``--live``: the report of a run that goes on, made again and again by a process of its own.

Not by a thread: it would take the interpreter from the training, and share the memory's open files with it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError
from seekr_cl.report.html.page import write_report

_PATIENCE = 10.0
"""Seconds for the page's process to end by itself; one whose disk does not answer may not."""


def page_of(given: Any) -> Path:
    """The page: named with ``--live``, or beside the output."""
    output = Path(os.path.abspath(given.output))
    return Path(given.live) if given.live else output.parent / f"{output.name}.html"


@contextmanager
def live(given: Any, main: bool) -> Iterator[None]:
    """Keeps the page up to date while a command works.

    Args:
        given: the command's options.
        main: whether this is the process that shows things.

    Raises:
        ConfigError: if the page would lie in the output, which must be empty when the command begins.
    """
    if getattr(given, "live", None) is None or not main:
        yield
        return
    page, output = page_of(given), Path(os.path.abspath(given.output))
    if output in Path(os.path.abspath(page)).parents:
        raise ConfigError(f"--live: {page} lies in --output; name a file outside it")
    words = [sys.executable, "-m", "seekr_cl.cli.main", "report", str(output), "--output", str(page), "--follow"]
    ours = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    # In a session of its own, so that Ctrl-C stops the run first and the page can say so.
    process = subprocess.Popen(
        words,
        env=ours | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"live report in {page}", file=sys.stderr)
    try:
        yield
    finally:
        _end(process)
        # The last page says how it ended. Where nothing has begun there is nothing to say. Whatever is wrong with it,
        # the run's own result or error matters more.
        with suppress(Exception):
            write_report([output], page)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)

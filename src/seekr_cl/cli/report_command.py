"""``seekr report``: one page about runs."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out
from seekr_cl.errors import ConfigError, SeekrError
from seekr_cl.report.html.page import write_report
from seekr_cl.system.run_record import read_events, record_of
from seekr_cl.system.run_state import RunState
from seekr_cl.system.sizes import size

_EVERY = 10
"""Seconds between two pages of a run that goes on."""
_LOOK = 1.0
_NICE = 10


def report_command(given: Any) -> None:
    """Writes the page and says what is not on it; under ``--follow`` again and again until the run is over."""
    output = Path(given.output)
    folders = [Path(run) for run in given.runs]
    if given.follow:
        if len(folders) != 1:
            raise ConfigError("--follow: is about one run; name one")
        _follow(folders[0], output)
    missing = write_report(folders, output)
    for line in missing:
        print(f"note: {line}", file=sys.stderr)
    out().print(f"report in {output}, {size(output.stat().st_size)}; open it in a browser", soft_wrap=True)


def _follow(folder: Path, output: Path) -> None:
    """Returns when the run is over, or whoever started this is gone."""
    parent = os.getppid()
    with suppress(OSError):
        os.nice(_NICE)
    last = (-1, -1.0)
    while os.getppid() == parent:
        record = record_of(folder)
        if record is not None:
            with suppress(OSError):
                found = record.stat()
                if (found.st_size, found.st_mtime) != last:
                    last = found.st_size, found.st_mtime
                    if RunState.of(read_events(record)[0]).ended:
                        return
                    # A file may be in the middle of being replaced; the next page has it.
                    with suppress(SeekrError):
                        write_report([folder], output, reload=_EVERY)
                    _wait(folder, _EVERY)
        time.sleep(_LOOK)


def _wait(folder: Path, seconds: float) -> None:
    """Waits, but not longer than the run goes on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(_LOOK)
        record = record_of(folder)
        with suppress(OSError):
            if record is None or RunState.of(read_events(record)[0]).ended:
                return

"""``seekr report``: one page about runs."""

import sys
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out, size
from seekr_cl.report.html.page import write_report


def report_command(given: Any) -> None:
    """Writes the page and says what is not on it."""
    output = Path(given.output)
    missing = write_report([Path(run) for run in given.runs], output)
    for line in missing:
        print(f"note: {line}", file=sys.stderr)
    out().print(f"report in {output}, {size(output.stat().st_size)}; open it in a browser", soft_wrap=True)

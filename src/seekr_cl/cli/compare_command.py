"""``seekr compare``: runs side by side."""

import json
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out
from seekr_cl.errors import ConfigError
from seekr_cl.models.loading import require_free
from seekr_cl.report.comparison import compare
from seekr_cl.report.comparison_tables import (
    COLUMNS,
    markdown,
    measure_columns,
    measure_rows,
    page,
    remarks,
    rich_table,
    summary_rows,
    task_rows,
)
from seekr_cl.report.drawing import draw
from seekr_cl.system.files import write_bytes, write_json
from seekr_cl.system.sizes import size


def compare_command(given: Any) -> None:
    """Prints the comparison and, with ``--output``, writes it as PNG, JSON, Markdown and HTML."""
    if given.json and given.markdown:
        raise ConfigError("--json and --markdown: choose one; --output writes both")
    if given.output:
        require_free(Path(given.output))
    content = compare([Path(run) for run in given.runs])
    if given.json:
        # Not through rich, which would fold long lines.
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif given.markdown:
        print(markdown(content, size), end="")
    else:
        console = out()
        console.print(rich_table(COLUMNS, summary_rows(content, size)))
        console.print(rich_table(("score after the last task", *content["tasks"]), task_rows(content)))
        if rows := measure_rows(content):
            console.print(rich_table(measure_columns(), rows))
        for line in remarks(content):
            console.print(line, soft_wrap=True)
    if given.output:
        folder = Path(given.output)
        write_json(folder / "comparison.json", content)
        write_bytes(folder / "comparison.md", markdown(content, size).encode())
        write_bytes(folder / "comparison.html", page(content, size, "comparison.png").encode())
        draw("plot_runs", content, folder / "comparison.png")
        if not (given.json or given.markdown):
            out().print(f"comparison.png, .json, .md and .html in {folder}", soft_wrap=True)

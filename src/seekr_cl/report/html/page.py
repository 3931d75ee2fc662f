"""The page: templates, styles and script of this package, put together into one file that needs nothing else."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seekr_cl.errors import OutputError, SeekrError
from seekr_cl.report.comparison import compare
from seekr_cl.report.comparison_tables import remarks
from seekr_cl.report.html import figures, methods
from seekr_cl.report.html.colors import hexadecimal, ink, shade
from seekr_cl.report.html.data import RunData
from seekr_cl.report.html.gather import duration, gather
from seekr_cl.report.html.head_maps import chosen_lines, head_map
from seekr_cl.report.html.heads import MEASURES
from seekr_cl.report.verdict import KINDS, signed, span
from seekr_cl.report.verdict_table import outcome_of
from seekr_cl.system.files import write_bytes
from seekr_cl.system.sizes import size
from seekr_cl.system.visible import one_line, visible
from seekr_cl.version import __version__

LARGEST = 3_000_000
"""Bytes of a page."""
_MARKS = {"lost": "▼", "unsure": "?", "not learned": "○", "kept": "✓", "learned": "▲"}
_FEWER = (240, 120, 60, 20, 0)
"""Examples to show: the largest number with which the page is small enough."""


def write_report(folders: Sequence[Path], output: Path, reload: int | None = None) -> list[str]:
    """Reads folders and writes the page.

    Args:
        folders: of ``seekr run``, ``learn`` or ``evaluate``.
        output: the HTML file; replaced if it is there.
        reload: seconds after which an open page loads itself anew, while a run goes on.

    Returns:
        What the page says is missing, a line each.

    Raises:
        DataError: for a folder that is none of these.
        OutputError: if the file cannot be written.
    """
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file, such as {output / 'report.html'}")
    runs = gather(folders)
    write_bytes(output, render(runs, reload).encode("utf-8", "replace"), private=True)
    return [f"{run.name}: {note}" for run in runs for note in run.notes]


def render(runs: Sequence[RunData], reload: int | None = None) -> str:
    """The page as text, small enough to be mailed.

    Args:
        runs: what it is about.
        reload: seconds after which it loads itself anew.
    """
    content = _content(runs)
    for most in _FEWER:
        page = _environment().get_template("page.html").render(content, most=most, reload=reload)
        if len(page.encode("utf-8", "replace")) < LARGEST:
            return page
    raise OutputError(f"report: {len(runs)} runs are too many for one page of 3 MB; name fewer")


def _content(runs: Sequence[RunData]) -> dict[str, Any]:
    comparison, refused = _comparison(runs)
    several = len(runs) > 1
    return {
        "runs": [_sections(run, number) for number, run in enumerate(runs, 1)],
        "comparison": comparison,
        "notes": refused,
        "title": one_line(runs[0].title if not several else _several(runs), 100),
        "several": several,
        "version": __version__,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _several(runs: Sequence[RunData]) -> str:
    """The title of a page about several: only runs are compared with each other."""
    kinds = {run.kind for run in runs}
    return (
        f"{len(runs)} runs compared"
        if kinds == {"run"}
        else f"{len(runs)} folders: {', '.join(Path(run.name).name for run in runs)}"
    )


def _comparison(runs: Sequence[RunData]) -> tuple[dict[str, Any] | None, list[str]]:
    """Methods side by side, if there are several runs with scores."""
    folders = [Path(run.name) for run in runs if run.kind == "run" and run.matrix is not None and run.matrix.rows]
    if len(folders) < 2:
        return None, []
    try:
        found = compare(folders)
    except SeekrError as error:
        return None, [f"comparison: {error}"]
    rows = found["methods"]
    found["remarks"] = [line for line in remarks(found) if not line.startswith("NOT COMPARABLE")]
    found["charts"] = [
        ("Overall performance (OP)", methods.interval_chart(rows, "op", "Overall performance by method", True)),
        ("Backward transfer (BWT)", methods.interval_chart(rows, "bwt", "Backward transfer by method", False)),
    ]
    found["frontiers"] = [
        chart
        for chart in (
            methods.frontier(rows, "memory_bytes", "memory, bytes"),
            methods.frontier(rows, "steps", "optimizer steps"),
        )
        if chart is not None
    ]
    return found, []


def _sections(run: RunData, number: int) -> dict[str, Any]:
    """One run's numbers and charts, by section."""
    return {
        "id": f"run{number}",
        "data": run,
        "matrix": _matrix(run),
        "curves": _curves(run),
        "retention": figures.retention_curve(run) if _has_probes(run) else None,
        "probes": _probes(run) if _has_probes(run) else [],
        "heads": [
            {
                "task": heads.task,
                "maps": [(measure, head_map(heads, measure, MEASURES[measure])) for measure in heads.maps],
                "chosen": chosen_lines(heads),
            }
            for heads in run.heads
        ],
        "loss": figures.loss_chart(run.logs) if run.logs else None,
        "shares": figures.share_chart(run.logs) if run.logs else None,
        "retained": figures.probe_chart(run.logs) if run.logs else None,
        "actions": [(log.task, line) for log in run.logs for line in log.actions],
        "verdict": _verdict_rows(run),
        "phases": figures.stacked_bars(_seconds(run), "seconds", "Time by phase", duration),
        "memory": figures.stacked_bars(figures.memory_rows(run.memory), "bytes", "Memory by kind and task", size)
        if run.memory
        else None,
        "kinds": _kinds(run),
    }


def _verdict_rows(run: RunData) -> list[dict[str, Any]]:
    """The verdict's lines as the page has them; lost ones first."""
    if run.verdict is None:
        return []
    order = ("lost", "unsure", "not learned", "kept", "learned")
    rows = [
        {
            "line": line,
            "kind": KINDS[line.kind],
            "change": "-" if line.change is None else signed(line.change),
            "interval": span(line.interval) or "-",
            "moved": line.transitions or {},
            "told": outcome_of(line),
            "mark": _MARKS[line.outcome],
        }
        for line in run.verdict.lines
    ]
    return sorted(rows, key=lambda row: order.index(row["line"].outcome))


def _seconds(run: RunData) -> list[tuple[str, dict[str, float]]]:
    return [(name, dict(parts)) for name, parts in run.phases]


def _kinds(run: RunData) -> list[str]:
    if run.memory is None:
        return []
    return list(dict.fromkeys(kind for kinds in run.memory.tasks.values() for kind in kinds))


def _has_probes(run: RunData) -> bool:
    return run.matrix is not None and any(run.matrix.extra.values())


def _probes(run: RunData) -> list[tuple[str, float, float]]:
    """Name, the base model's score, the last one."""
    assert run.matrix is not None
    return [(name, scores[0], scores[-1]) for name, scores in run.matrix.extra.items() if scores]


def _cell(score: float) -> dict[str, Any]:
    color = shade(score / 100)
    return {"score": score, "style": f"background:{hexadecimal(color)};color:{ink(color)}"}


def _matrix(run: RunData) -> dict[str, Any] | None:
    matrix = run.matrix
    if matrix is None or (matrix.base is None and not matrix.rows):
        return None
    rows = [("base model", [_cell(score) for score in matrix.base], -1)] if matrix.base is not None else []
    names = ["all tasks"] if matrix.joint else matrix.tasks
    rows += [(name, [_cell(s) for s in row], n) for n, (name, row) in enumerate(zip(names, matrix.rows))]
    numbers = [
        ("OP", matrix.op, "overall performance: the mean of the last row over the tasks learned"),
        ("BWT", matrix.bwt, "backward transfer: how earlier tasks changed since they were learned, on average"),
        ("Forgetting", matrix.forgetting, "mean drop from each earlier task's best score"),
        ("FWT", matrix.fwt, "forward transfer: what earlier tasks gave a task before it was learned"),
        ("Probes kept", matrix.base_kept, "mean of the probes after the last task"),
    ]
    return {"rows": rows, "numbers": [one for one in numbers if one[1] is not None], "joint": matrix.joint}


def _curves(run: RunData) -> list[Markup]:
    if run.matrix is None or len(run.stages) < 2:
        return []
    named = zip(run.matrix.tasks, run.matrix.metrics)
    return [
        figures.task_curve(run, task, metric, None if run.matrix.joint else number)
        for number, (task, metric) in enumerate(named, 1)
        if any(task in stage.scores for stage in run.stages)
    ]


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("seekr_cl.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever a template writes, and does not know to be its own, is text from somewhere.
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    made.filters |= {"visible": visible, "one_line": one_line, "size": size, "duration": duration}
    made.filters["n1"] = lambda value: "-" if value is None else f"{value:.1f}"
    made.filters["signed"] = lambda value: "-" if value is None else f"{value:+.1f}"
    for name in ("style.css", "script.js"):
        # Of this package: nothing in them comes from data.
        made.globals[name.partition(".")[0]] = Markup(
            (files("seekr_cl.report.html") / name).read_text(encoding="utf-8")
        )
    return made

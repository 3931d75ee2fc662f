"""Tables for people: one run's matrix, several methods side by side."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from seekr_cl.evaluation.scores import ScoreMatrix


def score_table(matrix: ScoreMatrix) -> Table:
    """A row for the base model and for each task learnt, a column for each task; the summary below."""
    table = Table("after", *[escape(f"{task}\n{metric}") for task, metric in zip(matrix.tasks, matrix.metrics)])
    table.title = " ".join(
        f"{name} {_number(value)}"
        for name, value in (
            ("OP", matrix.op),
            ("BWT", matrix.bwt),
            ("BWT/N", matrix.bwt_over_n),
            ("forgetting", matrix.forgetting),
            ("FWT", matrix.fwt),
        )
    )
    table.title_justify = "left"
    for column in table.columns[1:]:
        column.justify = "right"
    if matrix.base is not None:
        table.add_row("base", *[_number(score) for score in matrix.base], end_section=True)
    names = ["all"] if matrix.joint else matrix.tasks
    for name, row in zip(names, matrix.rows):
        table.add_row(escape(name), *[_number(score) for score in row])
    for probe, scores in matrix.extra.items():
        if scores:
            table.caption = f"{table.caption or 'probes, base to last:'} {escape(probe)} " + " ".join(
                map(_number, scores)
            )
    return table


def comparison_table(results: dict[str, dict[str, Any]]) -> Table:
    """A row a method: OP, BWT, what is left of the base model's skills, seconds, bytes of memory."""
    table = Table("method", "OP", "BWT", "base skills kept", "seconds", "memory bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for method, result in results.items():
        table.add_row(
            escape(method),
            _number(result["op"]),
            _number(result["bwt"]),
            _number(result["base"]),
            f"{result['seconds']:.0f}",
            f"{result['memory_bytes']:,}",
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

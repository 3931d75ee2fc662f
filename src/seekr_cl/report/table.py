"""Tables for people: one run's matrix, several methods side by side.

Names come from data, so they go in as ``Text``: nothing in them is markup or an emoji.
"""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from seekr_cl.evaluation.scores import ScoreMatrix

_NAMED = 6
"""Up to so many tasks have their names above the columns; more have numbers there and their names below."""
_ROOMY = 8
"""Up to so many tasks have a decimal and lines between the columns; 15 fit into 80 characters without."""
_SHORT = 12
"""Characters of a row's name where the whole names stand below."""


def score_table(matrix: ScoreMatrix) -> Table:
    """A row for the base model and for each task learned, a column for each task; the summary above."""
    count = len(matrix.tasks)
    named, roomy = count <= _NAMED, count <= _ROOMY
    table = Table(box=box.HEAVY_HEAD if roomy else box.SIMPLE_HEAD, padding=(0, 1) if roomy else 0)
    table.add_column("after", overflow="fold")
    for number, (task, metric) in enumerate(zip(matrix.tasks, matrix.metrics), 1):
        # Names may be folded; numbers may not.
        table.add_column(
            Text(f"{task}\n{metric}") if named else str(number),
            justify="right",
            min_width=5 if roomy else 3,
            overflow="fold",
        )
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
    # Two short tasks make a table narrower than its own summary.
    table.min_width = min(len(table.title) + 1, 79)
    table.title_justify = table.caption_justify = "left"

    def cells(scores: list[float]) -> list[str]:
        return [_number(score) if roomy else f"{score:.0f}" for score in scores]

    if matrix.base is not None:
        table.add_row("base", *cells(matrix.base), end_section=True)
    names = matrix.tasks if named else [f"{number} {task}" for number, task in enumerate(matrix.tasks, 1)]
    for name, row in zip(["all"] if matrix.joint else names, matrix.rows):
        short = name if named or len(name) <= _SHORT else name[: _SHORT - 1] + "…"
        table.add_row(Text(short), *cells(row))
    captions = [] if named else [f"{name} ({metric})" for name, metric in zip(names, matrix.metrics)]
    probes = {probe: scores for probe, scores in matrix.extra.items() if scores}
    if probes:
        means = [sum(stage) / len(stage) for stage in zip(*probes.values())]
        captions.append("probes, mean from base to last: " + " ".join(map(_number, means)))
        captions.append("probes, last: " + ", ".join(f"{probe} {_number(s[-1])}" for probe, s in probes.items()))
    if captions:
        table.caption = Text("\n".join(captions))
    return table


def comparison_table(results: dict[str, dict[str, Any]]) -> Table:
    """A row a method: OP, BWT, what is left of the base model's skills, seconds, bytes of memory."""
    table = Table("method", "OP", "BWT", "base skills kept", "seconds", "memory bytes")
    for column in table.columns[1:]:
        column.justify = "right"
    for method, result in results.items():
        table.add_row(
            Text(method),
            _number(result["op"]),
            _number(result["bwt"]),
            _number(result["base"]),
            f"{result['seconds']:.0f}",
            f"{result['memory_bytes']:,}",
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

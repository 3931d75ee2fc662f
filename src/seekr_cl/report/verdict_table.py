"""A verdict as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from seekr_cl.report.verdict import KINDS, Line, Verdict, points, shown, signed, span

_STYLES = {"lost": "red", "unsure": "yellow", "kept": "green", "learned": "", "not learned": "yellow"}


def verdict_table(verdict: Verdict) -> Table:
    """A row a task: the score before and after, the change with its interval, examples lost and gained, what it is."""
    told = any(line.transitions for line in verdict.lines)
    table = Table()
    table.add_column("task", overflow="fold")
    for name in ("what", "measure"):
        table.add_column(name)
    for name in ("before", "after", "change", f"{100 * verdict.confidence:g}% interval"):
        table.add_column(name, justify="right")
    table.add_column("examples", justify="right")
    if told:
        table.add_column("lost", justify="right")
        table.add_column("gained", justify="right")
    table.add_column("verdict")
    for line in verdict.lines:
        table.add_row(*_cells(line, told))
    return table


def outcome_of(line: Line) -> str:
    """What the last column says: the outcome, and of one that is not settled how many examples would settle it."""
    if line.outcome != "unsure":
        return line.outcome
    if line.interval is None:
        return "unsure: no answers to compare"
    if line.needed is None:
        return "unsure: right at what is allowed"
    return f"unsure: about {line.needed:,} examples would tell"


def _cells(line: Line, told: bool) -> list[Text | str]:
    # Names come from data: nothing in them is markup.
    cells: list[Text | str] = [Text(shown(line.task)), KINDS[line.kind], Text(shown(line.measure))]
    cells += ["-" if line.before is None else points(line.before), points(line.after)]
    cells += ["-" if line.change is None else signed(line.change), span(line.interval) or "-", str(line.examples)]
    if told:
        moved = line.transitions or {}
        cells += [str(moved.get(key, "-")) for key in ("lost_examples", "gained_examples")]
    return [*cells, Text(outcome_of(line), style=_STYLES[line.outcome])]

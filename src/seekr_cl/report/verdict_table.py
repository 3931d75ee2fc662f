"""A verdict as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from seekr_cl.report.verdict import KINDS, Line, Verdict, score_text, signed, span
from seekr_cl.system.visible import one_line

_STYLES = {"lost": "red", "unsure": "yellow", "kept": "green", "learned": "", "not learned": "yellow"}


_BESIDE = {
    "format": ("valid format", "{:.0f}% > {:.0f}%"),
    "exact": ("exact answers", "{:.0f}% > {:.0f}%"),
    "kl_to_stored": ("KL to stored", "{:.3f} > {:.3f}"),
}
"""Further measures: the column, and how before and after are told."""


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
    beside = [name for name in _BESIDE if any(name in line.more for line in verdict.lines)]
    for name in beside:
        table.add_column(_BESIDE[name][0], justify="right")
    table.add_column("verdict")
    for line in verdict.lines:
        table.add_row(*_cells(line, told, beside))
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


def _change_of(line: Line, name: str) -> str:
    """A further measure before and after."""
    found = line.more.get(name)
    return "-" if found is None else _BESIDE[name][1].format(found["before"], found["after"])


def _cells(line: Line, told: bool, beside: list[str]) -> list[Text | str]:
    # Names come from data: nothing in them is markup.
    cells: list[Text | str] = [Text(one_line(line.task, None)), KINDS[line.kind], Text(one_line(line.measure, None))]
    cells += [score_text(line.before), score_text(line.after)]
    cells += ["-" if line.change is None else signed(line.change), span(line.interval) or "-", str(line.examples)]
    if told:
        moved = line.transitions or {}
        cells += [str(moved.get(key, "-")) for key in ("lost_examples", "gained_examples")]
    cells += [_change_of(line, name) for name in beside]
    return [*cells, Text(outcome_of(line), style=_STYLES[line.outcome])]

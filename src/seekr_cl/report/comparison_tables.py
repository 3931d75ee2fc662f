"""The comparison as a table for the terminal, as Markdown and as HTML; names from data are escaped in each."""

import html
import re
from typing import Any

from rich.table import Table
from rich.text import Text

from seekr_cl.report.measures import MEASURES

_SCORES = ("OP", "BWT", "BWT/N", "forgetting", "FWT", "plasticity")
COLUMNS = ("method", "seeds", *_SCORES, "rate", "steps", "seconds", "memory")
_KEYS = ("op", "bwt", "bwt_over_n", "forgetting", "fwt", "plasticity")


def summary_rows(content: dict[str, Any], size: Any) -> list[list[str]]:
    """A row a method; numbers with the 95% interval where there is one.

    ``plasticity`` is the mean score right after learning, ``rate`` the learning rate of the tasks, ``steps`` the
    optimizer steps of all of them, replay's own included.
    """
    return [
        [row["method"], str(len(row["seeds"]))]
        + [_cell(row[key]) for key in _KEYS]
        + [", ".join(f"{rate:g}" for rate in row["learning_rates"]) or "-"]
        + ["-" if row["steps"] is None else f"{row['steps']:.0f}"]
        + [f"{row['seconds']:.0f}", size(row["memory_bytes"])]
        for row in content["methods"]
    ]


def task_rows(content: dict[str, Any]) -> list[list[str]]:
    """A row a method: each task's score after the last."""
    return [
        [row["method"]] + [_cell(row["tasks"].get(task)) for task in content["tasks"]] for row in content["methods"]
    ]


def measure_rows(content: dict[str, Any]) -> list[list[str]]:
    """A row a method: what else was measured; none where nothing was."""
    rows = [
        [row["method"], *(_measure(row["measures"].get(key), form) for key, (_, form) in MEASURES.items())]
        for row in content["methods"]
    ]
    return rows if any(cell != "-" for row in rows for cell in row[1:]) else []


def measure_columns() -> tuple[str, ...]:
    """The columns of ``measure_rows``."""
    return ("method", *(name for name, _ in MEASURES.values()))


def _measure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def test_lines(content: dict[str, Any]) -> list[str]:
    """A sentence a paired test."""
    return [
        f"{test['second']} against {test['first']}: OP {test['difference']:+.1f} [{test['interval'][0]:+.1f}, "
        f"{test['interval'][1]:+.1f}], {_p(test)} (permutation of the answers to {test['examples']} examples, "
        f"{len(test['seeds'])} {'seed' if len(test['seeds']) == 1 else 'seeds'})"
        for test in content["paired_tests"]
    ] + [
        f"{test['second']} against {test['first']}, right after learning: {test['difference']:+.1f} "
        f"[{test['interval'][0]:+.1f}, {test['interval'][1]:+.1f}], {_p(test)}: plasticity"
        for test in content.get("plasticity_tests", [])
    ]


def remarks(content: dict[str, Any]) -> list[str]:
    """What is not comparable first, then tests and notes."""
    return [
        *(f"NOT COMPARABLE: {line}" for line in content["not_comparable"]),
        *test_lines(content),
        *(f"note: {line}" for line in content["notes"]),
    ]


def rich_table(columns: Any, rows: list[list[str]]) -> Table:
    """For the terminal."""
    table = Table()
    for place, name in enumerate(columns):
        table.add_column(Text(str(name)), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown(content: dict[str, Any], size: Any) -> str:
    """Two tables and the remarks."""
    parts = [
        _markdown_table(COLUMNS, summary_rows(content, size)),
        _markdown_table(("method", *content["tasks"]), task_rows(content)),
    ]
    if rows := measure_rows(content):
        parts.append(_markdown_table(measure_columns(), rows))
    lines = "\n".join(f"- {_plain(line)}" for line in [*remarks(content), f"intervals: {content['interval_level']}"])
    return "\n\n".join([*parts, lines]) + "\n"


def page(content: dict[str, Any], size: Any, plot: str) -> str:
    """One HTML page with the plot beside it."""
    about = "".join(
        f"<li><b>{html.escape(key)}</b>: {html.escape(text)}</li>" for key, text in content["conventions"].items()
    )
    warnings = "".join(f"<li>{html.escape(line)}</li>" for line in content["not_comparable"])
    others = "".join(f"<li>{html.escape(line)}</li>" for line in [*test_lines(content), *content["notes"]])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Comparison</title><style>'
        "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:75em;padding:0 1em}table{border-collapse:collapse;"
        "margin:1em 0}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}"
        "td:first-child,th:first-child{text-align:left}.warn{background:#fff3cd;padding:.5em 1em}img{max-width:100%}"
        "</style></head><body><h1>Comparison</h1>"
        + (f'<div class="warn"><b>Not comparable</b><ul>{warnings}</ul></div>' if warnings else "")
        + _html_table(COLUMNS, summary_rows(content, size))
        + f'<img src="{html.escape(plot, quote=True)}" alt="OP, BWT and scores of the tasks">'
        + _html_table(("method", *content["tasks"]), task_rows(content))
        + (_html_table(measure_columns(), rows) if (rows := measure_rows(content)) else "")
        + f"<ul>{others}</ul><h2>Conventions</h2><ul>{about}"
        + f"<li>intervals: {html.escape(content['interval_level'])}</li></ul></body></html>\n"
    )


def _cell(number: dict[str, Any] | None) -> str:
    if number is None:
        return "-"
    interval = number["interval"]
    return f"{number['mean']:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _p(test: dict[str, Any]) -> str:
    return "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|$#~&])", r"\\\1", " ".join(text.split()))


def _markdown_table(columns: Any, rows: list[list[str]]) -> str:
    lines = [list(map(str, columns)), ["---", *["---:"] * (len(columns) - 1)]]
    shown = [lines[0], *rows]
    body = ["| " + " | ".join(map(_plain, row)) + " |" for row in shown]
    return "\n".join([body[0], "| " + " | ".join(lines[1]) + " |", *body[1:]])


def _html_table(columns: Any, rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

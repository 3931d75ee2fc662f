"""Several runs side by side: means with intervals, and what retention costs in bytes and in steps."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from seekr_cl.report.html import charts
from seekr_cl.report.html.charts import Axis
from seekr_cl.system.visible import one_line


def interval_chart(methods: Sequence[dict[str, Any]], key: str, title: str, fixed: bool) -> Markup | None:
    """A point and its interval for each method.

    Args:
        methods: rows of ``comparison.compare``.
        key: which number of theirs.
        title: of the chart.
        fixed: whether the axis goes from 0 to 100.
    """
    rows = [(row["method"], row[key]) for row in methods if row[key] is not None]
    if not rows:
        return None
    ends = [end for _, one in rows for end in (one["interval"] or [one["mean"]])] + [one["mean"] for _, one in rows]
    low, high = (0.0, 100.0) if fixed else (min(0.0, *ends), max(0.0, *ends))
    width, step = 460, 30
    height = 30 + step * len(rows) + 36
    x = charts.linear(low, high, 130, width - 56, 5)
    parts: list[Markup] = []
    for value, label in x.ticks:
        parts += [charts.line(x(value), 14, x(value), height - 34, "axis" if value == 0 else "grid")]
        parts.append(charts.text(x(value), height - 20, label, "tick", "middle"))
    told = []
    for number, (name, one) in enumerate(rows):
        middle = 30 + step * number
        color = f"c{number % charts.CLASSES}"
        parts.append(charts.text(122, middle + 4, one_line(name, 19), "tick", "end"))
        interval = one["interval"]
        if interval:
            parts.append(charts.line(x(interval[0]), middle, x(interval[1]), middle, f"whisker {color}"))
        for value in one["values"] if len(one["values"]) > 1 else ():
            parts.append(Markup('<circle cx="{}" cy="{}" r="2.5" class="seed {}"/>').format(x(value), middle, color))
        parts.append(Markup('<circle cx="{}" cy="{}" r="5" class="dot {}"/>').format(x(one["mean"]), middle, color))
        said = f"{one['mean']:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
        parts.append(charts.text(width - 48, middle + 4, said.split(" ")[0], "tick"))
        told.append(f"{name}: {said}")
    return charts.svg(width, height, title, "; ".join(told) + ". Small dots are seeds.", parts)


def frontier(methods: Sequence[dict[str, Any]], cost: str, label: str) -> Markup | None:
    """Retention against a cost, a point a method; the line joins those that nothing else beats in both.

    Args:
        methods: rows of ``comparison.compare``.
        cost: ``memory_bytes`` or ``steps``.
        label: of the cost, with its unit.
    """
    points = [
        (float(row[cost]), float(row["bwt"]["mean"]), str(row["method"]))
        for row in methods
        if row[cost] is not None and row["bwt"] is not None
    ]
    if len(points) < 2:
        return None
    width, height = 420, 280
    costs, kept = [cost for cost, _, _ in points], [value for _, value, _ in points]
    slack = (max(costs) - min(costs)) * 0.08 or max(costs) * 0.1 or 1.0
    x = charts.linear(max(0.0, min(costs) - slack), max(costs) + slack, 50, width - 16, 4)
    room = (max(kept) - min(kept)) * 0.15 or 1.0
    y = charts.linear(min(kept) - room, min(max(kept) + room, max(5.0, max(kept))), height - 40, 26)
    parts = charts.frame(x, y, label, "BWT, points (0: nothing forgotten)", height, width)
    best = pareto([(cost, value) for cost, value, _ in points])
    if len(best) > 1:
        parts.append(Markup('<path d="{}" class="front"/>').format(charts.path(best, x, y)))
    for number, (cost_value, value, name) in enumerate(points):
        parts.append(_point(number, x(cost_value), y(value), name, x, math.isclose(cost_value, max(costs))))
    told = "; ".join(f"{name}: {charts.short(cost)}, BWT {value:.1f}" for cost, value, name in points)
    return charts.svg(width, height, f"Retention against {label}", told + ".", parts)


def _point(number: int, x: float, y: float, name: str, axis: Axis, right: bool) -> Markup:
    anchor = "end" if right and x > (axis.begin + axis.end) / 2 else "start"
    shift = -9 if anchor == "end" else 9
    dot = Markup('<circle cx="{}" cy="{}" r="5" class="dot c{}"/>').format(x, y, number % charts.CLASSES)
    return dot + charts.text(x + shift, y - 7, one_line(name, 26), "note", anchor)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, gain), those that no other beats: as cheap and better, or cheaper and as good."""
    best: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda one: (one[0], -one[1])):
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    return best

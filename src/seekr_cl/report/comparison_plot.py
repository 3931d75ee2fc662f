"""The comparison as one picture: OP and BWT of each method with intervals and seeds, and the tasks."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from seekr_cl.report.plots import COLOURS, _label, _labels, _save, _slant, _style


def plot_runs(content: dict[str, Any], path: Path) -> None:
    """Left OP, in the middle BWT, right each task's score after the last; bars are 95% intervals, rings are seeds."""
    methods, tasks = content["methods"], content["tasks"]
    names = [_label(row["method"]) for row in methods]
    height = max(4.4, 2.6 + 0.42 * len(methods))
    with _style():
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(11 + 0.75 * len(tasks), height), layout="constrained",
            width_ratios=(4, 4, max(4, 0.25 * len(methods) * len(tasks) / 2 + 3)),
        )  # fmt: skip
        for axes, key, title in ((left, "op", "OP: final mean score"), (middle, "bwt", "BWT: change since learned")):
            for place, row in enumerate(methods):
                _point(axes, row[key], place, COLOURS[place % len(COLOURS)], horizontal=True)
            axes.set(ylim=(len(methods) - 0.5, -0.5), title=title, xlabel="points (bar: 95% interval, ring: a seed)")
            axes.set_yticks(range(len(methods)), names if axes is left else [""] * len(methods))
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
        middle.axvline(0, color="#666666", linewidth=0.8)
        for place, row in enumerate(methods):
            shift = (place - (len(methods) - 1) / 2) * 0.7 / max(1, len(methods))
            for number, task in enumerate(tasks):
                _point(right, row["tasks"].get(task), number + shift, COLOURS[place % len(COLOURS)], horizontal=False)
        right.set(ylim=(-3, 103), xlim=(-0.6, len(tasks) - 0.4), title="score on each task after the last")
        right.set_xticks(range(len(tasks)), _labels(tasks))
        _slant(right)
        right.grid(axis="y", alpha=0.3)
        for border in np.arange(0.5, len(tasks) - 1):
            right.axvline(border, color="#cccccc", linewidth=0.6)
        if content["not_comparable"]:
            count = len(content["not_comparable"])
            figure.suptitle(
                f"NOT COMPARABLE in {count} respect{'s' if count > 1 else ''}: see the table",
                color="#B00020",
                fontsize=11,
            )
        _save(figure, path)


def _point(axes: Any, number: dict[str, Any] | None, place: float, colour: str, horizontal: bool) -> None:
    if number is None:
        if horizontal:
            axes.annotate(
                "none", (0.5, place), xycoords=("axes fraction", "data"), ha="center", va="center", color="#666666"
            )
        return
    low, high = number["interval"] or [number["mean"]] * 2
    error = [[max(0.0, number["mean"] - low)], [max(0.0, high - number["mean"])]]
    style: dict[str, Any] = {"fmt": "o", "color": colour, "capsize": 3, "markersize": 5, "zorder": 3}
    rings: dict[str, Any] = {"facecolors": "none", "edgecolors": colour, "s": 28, "alpha": 0.8, "linewidths": 0.9}
    values = number["values"] if len(number["values"]) > 1 else []
    if horizontal:
        axes.errorbar(number["mean"], place, xerr=error, **style)
        axes.scatter(values, [place + 0.22] * len(values), **rings)
    else:
        axes.errorbar(place, number["mean"], yerr=error, **style)

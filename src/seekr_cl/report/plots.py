"""Plots of one run and of several methods, as PNG files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from seekr_cl.evaluation.scores import ScoreMatrix

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_DPI = 120


def _label(name: str) -> str:
    """A name from data as plain text: matplotlib would read dollar signs as mathematics."""
    short = name if len(name) <= 24 else name[:23] + "…"
    return short.replace("$", r"\$")


def plot_matrix(matrix: ScoreMatrix, path: Path) -> None:
    """A heat map of the scores, the base row first."""
    rows = ([matrix.base] if matrix.base is not None else []) + matrix.rows
    names = (["base"] if matrix.base is not None else []) + (["all"] if matrix.joint else matrix.tasks)[
        : len(matrix.rows)
    ]
    values = np.array(rows, dtype=float)
    figure, axes = plt.subplots(figsize=(2.5 + 0.9 * len(matrix.tasks), 1.8 + 0.45 * len(rows)), layout="constrained")
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row, scores in enumerate(values):
        for column, score in enumerate(scores):
            axes.text(column, row, f"{score:.0f}", ha="center", va="center", color="black" if score > 55 else "white")
    axes.set_xticks(range(len(matrix.tasks)), [_label(task) for task in matrix.tasks], rotation=30, ha="right")
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.set_ylabel("after learning")
    op, bwt = matrix.op, matrix.bwt
    axes.set_title(
        "score on" + ("" if op is None else f"   (OP {op:.1f}" + ("" if bwt is None else f", BWT {bwt:.1f}") + ")")
    )
    figure.colorbar(image, label="score")
    _save(figure, path)


def plot_comparison(runs: dict[str, ScoreMatrix], path: Path) -> None:
    """Left: mean score on the tasks learnt so far; right: each task's final score; a colour a method."""
    tasks = next(iter(runs.values())).tasks
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained", width_ratios=(1, 1.5))
    for number, (method, matrix) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        if matrix.joint:
            left.axhline(matrix.op or 0, color=colour, linestyle="--", label=_label(method))
        else:
            means = [float(np.mean(row[: done + 1])) for done, row in enumerate(matrix.rows)]
            left.plot(range(1, len(means) + 1), means, marker="o", color=colour, label=_label(method))
        width = 0.8 / len(runs)
        places = np.arange(len(tasks)) + (number - (len(runs) - 1) / 2) * width
        right.bar(places, matrix.rows[-1], width, color=colour, label=_label(method))
    left.set(xlabel="tasks learnt", ylabel="mean score on them", ylim=(0, 103), xticks=range(1, len(tasks) + 1))
    left.grid(alpha=0.3)
    left.legend(loc="lower left", fontsize="small")
    right.set(ylabel="score after the last task", ylim=(0, 103))
    right.set_xticks(range(len(tasks)), [_label(task) for task in tasks], rotation=30, ha="right")
    right.grid(axis="y", alpha=0.3)
    _save(figure, path)


def plot_retention(runs: dict[str, ScoreMatrix], path: Path) -> None:
    """What is left of the base model's skills after each task: the mean over the probes, a line a method."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    tasks: list[str] = []
    for number, (method, matrix) in enumerate(runs.items()):
        if not matrix.extra or matrix.joint:
            continue
        tasks = matrix.tasks
        means = np.mean([scores for scores in matrix.extra.values()], axis=0)
        axes.plot(range(len(means)), means, marker="o", color=COLOURS[number % len(COLOURS)], label=_label(method))
    axes.set(ylabel="mean score on the base skills", ylim=(0, 103))
    axes.set_xticks(range(len(tasks) + 1), ["base", *[_label(task) for task in tasks]], rotation=30, ha="right")
    axes.grid(alpha=0.3)
    if tasks:
        axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)

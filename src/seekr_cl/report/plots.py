"""Plots of one run and of several methods, as PNG files."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager

from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.system.files import write_bytes

# Okabe and Ito's palette, which color-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_DPI = 120
_LONGEST = 24
# matplotlib's own font knows no Chinese, Japanese or Korean; any of these that is installed fills in.
_WIDE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB"),
    *("Microsoft YaHei", "SimHei", "Arial Unicode MS", "Malgun Gothic", "Noto Sans CJK KR"),
)


@cache
def _fonts() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed))


@cache
def _drawable(sign: str) -> bool:
    faces = (font_manager.get_font(font_manager.findfont(name)) for name in _fonts())
    return any(face.get_char_index(ord(sign)) for face in faces)


def _label(name: str, number: int | None = None) -> str:
    """A name that fits beside an axis; where no font has its characters, its number in the stream and what is left."""
    plain = " ".join(name.split())
    drawn = "".join(sign for sign in plain if _drawable(sign)).strip()
    if drawn != plain and number is not None:
        plain = f"task {number}" + (f" ({drawn})" if any(map(str.isalnum, drawn)) else "")
    elif drawn != plain:
        plain = drawn or "?"
    if len(plain) <= _LONGEST:
        return plain
    # Names of a family differ at the end as often as at the start.
    return plain[: _LONGEST - 9] + "…" + plain[-8:]


def _labels(tasks: Sequence[str]) -> list[str]:
    return [_label(task, number) for number, task in enumerate(tasks, 1)]


def _style() -> Any:
    # Names come from data: a dollar sign in one is no mathematics.
    return plt.rc_context({"font.family": list(_fonts()), "text.parse_math": False})


def plot_matrix(matrix: ScoreMatrix, path: Path) -> None:
    """A heat map of the scores, the base row first."""
    rows = ([matrix.base] if matrix.base is not None else []) + matrix.rows
    tasks = _labels(matrix.tasks)
    names = (["base"] if matrix.base is not None else []) + (["all"] if matrix.joint else tasks)[: len(matrix.rows)]
    values = np.array(rows, dtype=float).reshape(len(rows), len(tasks))
    size = (max(5.0, 3.2 + 0.62 * len(tasks)), max(3.0, 2.2 + 0.38 * len(rows)))
    with _style():
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, scores in enumerate(values):
            for column, score in enumerate(scores):
                axes.text(
                    column, row, f"{score:.0f}", ha="center", va="center", color="black" if score > 55 else "white"
                )
        axes.set_xticks(range(len(tasks)), tasks)
        _slant(axes)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylabel("after learning")
        axes.set_xlabel("score on")
        summary = [
            f"{name} {value:.1f}" for name, value in (("OP", matrix.op), ("BWT", matrix.bwt)) if value is not None
        ]
        axes.set_title(", ".join(summary))
        figure.colorbar(image, label="score")
        _save(figure, path)


def plot_comparison(runs: dict[str, ScoreMatrix], path: Path) -> None:
    """Left: mean score on the tasks learned so far; right: each task's final score; a color a method."""
    tasks = _labels(next(iter(runs.values())).tasks)
    room = max(13.0, 7.0 + 0.9 * len(tasks))
    with _style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(room, 5.4), layout="constrained", width_ratios=(5, max(7.5, room - 5.5))
        )
        for number, (method, matrix) in enumerate(runs.items()):
            colour = COLOURS[number % len(COLOURS)]
            if not matrix.rows:
                continue
            if matrix.joint:
                left.axhline(matrix.op or 0, color=colour, linestyle="--", label=_label(method))
            else:
                means = [float(np.mean(row[: done + 1])) for done, row in enumerate(matrix.rows)]
                left.plot(range(1, len(means) + 1), means, marker="o", color=colour, label=_label(method))
            width = 0.8 / len(runs)
            places = np.arange(len(tasks)) + (number - (len(runs) - 1) / 2) * width
            right.bar(places, matrix.rows[-1], width, color=colour)
        left.set(xlabel="tasks learnt", ylabel="mean score on them", ylim=(0, 103), xticks=range(1, len(tasks) + 1))
        left.grid(alpha=0.3)
        right.set(ylabel="score after the last task", ylim=(0, 103), xlim=(-0.6, len(tasks) - 0.4))
        right.set_xticks(range(len(tasks)), tasks)
        _slant(right)
        right.grid(axis="y", alpha=0.3)
        right.set_axisbelow(True)
        # Outside, where it hides no line.
        if left.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper center", ncols=min(len(runs), 6), frameon=False)
        _save(figure, path)


def plot_retention(runs: dict[str, ScoreMatrix], path: Path) -> None:
    """What is left of the base model's skills after each task: the mean over the probes, a line a method."""
    shown = {method: matrix for method, matrix in runs.items() if matrix.extra and not matrix.joint}
    tasks = _labels(next(iter(shown.values())).tasks) if shown else []
    with _style():
        figure, axes = plt.subplots(figsize=(max(8.0, 3 + 0.6 * len(tasks)), 5.2), layout="constrained")
        for number, (method, matrix) in enumerate(runs.items()):
            if method in shown:
                means = np.mean(list(matrix.extra.values()), axis=0)
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(range(len(means)), means, marker="o", color=colour, label=_label(method))
        axes.set(ylabel="mean score on the base skills", xlabel="after learning", ylim=(0, 103))
        axes.set_xticks(range(len(tasks) + 1), ["base", *tasks])
        _slant(axes)
        axes.grid(alpha=0.3)
        if shown:
            figure.legend(loc="outside upper center", ncols=min(len(shown), 4), frameon=False)
        _save(figure, path)


def _slant(axes: Any) -> None:
    """Task names at an angle, each ending at its tick, unless all of them are short."""
    names = axes.get_xticklabels()
    axes.tick_params(axis="x", length=0)
    if any(len(name.get_text()) > 4 for name in names):
        plt.setp(names, rotation=35, ha="right", rotation_mode="anchor")


def _save(figure: Any, path: Path) -> None:
    # Drawn whole before any of it is written: a full disk leaves the former picture, and no half one.
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, dpi=_DPI, format="png")
    finally:
        plt.close(figure)
    write_bytes(path, drawn.getvalue())

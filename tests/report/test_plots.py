"""Plots are written whatever the names are, without a warning; what they show is checked on the figure itself."""

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from seekr_cl.evaluation import ScoreMatrix
from seekr_cl.report import plot_comparison, plot_matrix, plot_retention, plots

NAMES = {
    "plain": ["reverse", "count"],
    "dollars": ["cost$x$", "$", "a_b^c$", r"\frac{1}{2}$", "100%"],
    "chinese": ["中文情感", "日本語 task", "C-STANCE 立场", "한국어"],
    "long": ["a_name_of_thirty_characters_xx", "a_name_of_thirty_characters_yy", "x" * 200],
    "many": [f"task{number:04d}" for number in range(15)],
    "odd": ["[red]", "_hidden", "", "line\nbreak", "\U0001f600", "<b>"],
}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert not plt.get_fignums()  # every figure is closed again


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that were saved, alive."""
    kept: list = []
    monkeypatch.setattr(plt, "close", lambda figure=None: kept.append(figure))
    yield kept
    monkeypatch.undo()
    plt.close("all")


def matrix(names: list[str], joint: bool = False, base: bool = True) -> ScoreMatrix:
    count = len(names)
    rows = [[float(10 * i + j) % 100 for j in range(count)] for i in range(1 if joint else count)]
    extra = {"p": [90.0] * (len(rows) + 1), "q": [70.0] * (len(rows) + 1)}
    return ScoreMatrix(names, ["f1"] * count, [3.0] * count if base else None, rows, extra, joint)


def is_png(path: Path) -> bool:
    image = plt.imread(path)
    return path.read_bytes().startswith(b"\x89PNG") and min(image.shape[:2]) > 200 and float(np.std(image)) > 0.05


@pytest.mark.parametrize("kind", NAMES)
def test_every_plot_is_written(kind, tmp_path):
    runs = {"seekr": matrix(NAMES[kind]), "[$]": matrix(NAMES[kind]), "multitask": matrix(NAMES[kind], joint=True)}
    for number, draw in enumerate((plot_comparison, plot_retention)):
        draw(runs, tmp_path / "deep" / f"{number}.png")
        assert is_png(tmp_path / "deep" / f"{number}.png")
    for number, one in enumerate(
        (matrix(NAMES[kind]), matrix(NAMES[kind], joint=True), matrix(NAMES[kind], base=False))
    ):
        plot_matrix(one, tmp_path / f"matrix{number}.png")
        assert is_png(tmp_path / f"matrix{number}.png")


def test_runs_that_have_hardly_begun(tmp_path):
    plot_matrix(ScoreMatrix(["a", "b"], ["f1", "f1"], [1.0, 2.0]), tmp_path / "base.png")
    plot_matrix(ScoreMatrix(["a", "b"], ["f1", "f1"], None, [[1.0, 2.0]]), tmp_path / "one.png")
    plot_comparison({"a": ScoreMatrix(["a", "b"], ["f1", "f1"])}, tmp_path / "none.png")
    plot_retention({"a": ScoreMatrix(["a"], ["f1"], None, [[1.0]])}, tmp_path / "no_probes.png")
    assert len(list(tmp_path.iterdir())) == 4


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


def test_the_matrix_shows_every_score_and_the_names_as_they_are(figures, tmp_path):
    names = NAMES["dollars"]
    plot_matrix(matrix(names), tmp_path / "m.png")
    axes = figures[0].axes[0]
    assert texts(axes.get_xticklabels()) == names
    assert texts(axes.get_yticklabels()) == ["base", *names]
    assert not any(label.get_parse_math() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown[(0, 0)] == "3"
    assert shown[(2, 1)] == "2"  # after the first task, on the third
    assert shown[(1, 3)] == "21"
    assert axes.get_title() == "OP 42.0, BWT 25.0"


def test_the_comparison_shows_means_over_the_tasks_learnt(figures, tmp_path):
    one = ScoreMatrix(["a", "b"], ["f1", "f1"], [0.0, 0.0], [[80.0, 99.0], [60.0, 40.0]])
    both = ScoreMatrix(["a", "b"], ["f1", "f1"], None, [[90.0, 70.0]], joint=True)
    plot_comparison({"seekr": one, "multitask": both}, tmp_path / "c.png")
    left, right = figures[0].axes
    assert list(left.lines[0].get_ydata()) == [80.0, 50.0]  # 99 on a task not learned yet does not count
    assert set(left.lines[1].get_ydata()) == {80.0}
    assert [bar.get_height() for bar in right.patches] == [60.0, 40.0, 90.0, 70.0]
    assert texts(figures[0].legends[0].get_texts()) == ["seekr", "multitask"]
    assert texts(right.get_xticklabels()) == ["a", "b"]


def test_the_retention_shows_the_mean_over_probes(figures, tmp_path):
    one = matrix(["a", "b"])
    one.extra = {"p": [100.0, 50.0, 20.0], "q": [80.0, 30.0, 0.0]}
    plot_retention({"multitask": matrix(["a", "b"], joint=True), "seekr": one}, tmp_path / "r.png")
    (line,) = figures[0].axes[0].lines
    assert list(line.get_ydata()) == [90.0, 40.0, 10.0]
    assert line.get_color() == plots.COLOURS[1]  # a method has one color in all plots


@pytest.mark.parametrize("kind", ["long", "many", "dollars", "plain"])
def test_names_do_not_run_into_each_other_or_out_of_the_picture(kind, figures, tmp_path):
    plot_matrix(matrix(NAMES[kind]), tmp_path / "m.png")
    plot_comparison({"seekr": matrix(NAMES[kind])}, tmp_path / "c.png")
    plot_retention({"seekr": matrix(NAMES[kind])}, tmp_path / "r.png")
    for figure in figures:
        figure.draw_without_rendering()
        whole = figure.bbox.padded(1)
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            assert all(whole.containsx(edge) for box in boxes for edge in (box.x0, box.x1))
            assert all(whole.containsy(edge) for box in boxes for edge in (box.y0, box.y1))
    names = [label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()]
    assert all(figures[0].bbox.containsx(name.x0) for name in names)
    assert not any(one.overlaps(other) for one, other in pairwise(names))


def test_names_of_a_family_stay_apart():
    labels = plots._labels([f"{'a_long_name_' * 3}{number}" for number in range(12)])
    assert len(set(labels)) == 12
    assert max(map(len, labels)) <= 24


def test_characters_no_font_has_are_replaced_by_the_tasks_number(monkeypatch):
    monkeypatch.setattr(plots, "_drawable", lambda sign: ord(sign) < 0x3000)
    assert plots._labels(["中文", "C-STANCE 立场", "plain", "情感…"]) == [
        "task 1",
        "task 2 (C-STANCE)",
        "plain",
        "task 4",
    ]
    assert plots._label("方法") == "?"
    monkeypatch.setattr(plots, "_drawable", lambda sign: True)
    assert plots._labels(["中文", "C-STANCE 立场"]) == ["中文", "C-STANCE 立场"]

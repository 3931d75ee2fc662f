"""A plot that cannot be drawn or written is a warning, and leaves what was there."""

import errno
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from seekr_cl.errors import OutputWarning
from seekr_cl.evaluation import ScoreMatrix
from seekr_cl.report.drawing import draw

MATRIX = ScoreMatrix(["a", "b"], ["f1", "f1"], [1.0, 2.0])


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", [(os, "fsync"), (os, "replace"), (Figure, "savefig")])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[object, str]) -> None:
    path = tmp_path / "scores.png"
    draw("plot_matrix", MATRIX, path)
    before = path.read_bytes()
    monkeypatch.setattr(*where, full)
    with pytest.warns(OutputWarning, match=r"scores\.png: .*No space left.*everything else is written"):
        draw("plot_matrix", ScoreMatrix(["c"], ["f1"], [3.0]), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["scores.png"]


def test_a_fault_of_ours_is_no_warning(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        draw("plot_matrix", None, tmp_path / "scores.png")

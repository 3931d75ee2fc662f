"""Plots beside results that are written already: one that cannot be drawn or written is a warning."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from seekr_cl.errors import OutputWarning, SeekrError
from seekr_cl.os_errors import describe

_PLACES = {
    "plot_matrix": "plots",
    "plot_comparison": "plots",
    "plot_retention": "plots",
    "plot_runs": "comparison_plot",
}


def draw(plot: str, content: Any, path: Path) -> None:
    """Draws a plot of what is safe on disk.

    Args:
        plot: name of the function.
        content: what it draws.
        path: the file.
    """
    try:
        # Only here: matplotlib wants folders for its cache, which a full disk or a home of nobody's has not.
        getattr(import_module(f"seekr_cl.report.{_PLACES[plot]}"), plot)(content, path)
    except SeekrError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{path}: the plot cannot be drawn ({describe(error)})"
    else:
        return
    warnings.warn(f"{reason}; everything else is written", OutputWarning, stacklevel=2)

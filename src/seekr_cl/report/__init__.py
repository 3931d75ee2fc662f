"""What a person looks at: tables and plots.

Plots come from ``plots`` and ``comparison_plot``, which import matplotlib and are imported where one is drawn.
"""

from typing import TYPE_CHECKING, Any

from seekr_cl.report.table import comparison_table, score_table

if TYPE_CHECKING:
    from seekr_cl.report.plots import plot_comparison, plot_matrix, plot_retention

__all__ = ["comparison_table", "plot_comparison", "plot_matrix", "plot_retention", "score_table"]


def __getattr__(name: str) -> Any:
    """The plots' functions, when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from seekr_cl.report import plots

    return getattr(plots, name)

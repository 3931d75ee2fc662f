"""What a person looks at: tables and plots."""

from seekr_cl.report.plots import plot_comparison, plot_matrix, plot_retention
from seekr_cl.report.table import comparison_table, score_table

__all__ = ["comparison_table", "plot_comparison", "plot_matrix", "plot_retention", "score_table"]

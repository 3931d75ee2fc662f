"""The attention engine: pure tensor code that taps, scores and distils attention on the model's own fast kernel."""

from seekr_cl.attention.actions import DistillRows, MeasureSensitivity, RecordRows, RowTarget
from seekr_cl.attention.rows import AttentionCall, RowIndex, attention_rows, row_kl
from seekr_cl.attention.tap import AttentionTap

__all__ = [
    "AttentionCall",
    "AttentionTap",
    "DistillRows",
    "MeasureSensitivity",
    "RecordRows",
    "RowIndex",
    "RowTarget",
    "attention_rows",
    "row_kl",
]

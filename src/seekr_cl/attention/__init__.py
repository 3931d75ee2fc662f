"""The attention engine: pure tensor code that taps, scores and distils attention on the model's own fast kernel."""

from seekr_cl.attention.actions import DistillRows, InTurn, MeasureSensitivity, RecordEach, RecordRows
from seekr_cl.attention.call import AttentionCall, RowIndex
from seekr_cl.attention.divergence import row_kl
from seekr_cl.attention.rows import attention_rows
from seekr_cl.attention.stored.dense import DenseRows
from seekr_cl.attention.stored.factors import FactorRows
from seekr_cl.attention.stored.top_k import TopKRows
from seekr_cl.attention.tap import AttentionTap
from seekr_cl.attention.targets import RowTarget
from seekr_cl.attention.teacher_rows import TeacherRows

__all__ = [
    "AttentionCall",
    "AttentionTap",
    "DenseRows",
    "DistillRows",
    "FactorRows",
    "InTurn",
    "MeasureSensitivity",
    "RecordEach",
    "RecordRows",
    "RowIndex",
    "RowTarget",
    "TeacherRows",
    "TopKRows",
    "attention_rows",
    "row_kl",
]

"""Teacher rows as they are kept: small tensors on the one side, ``TeacherRows`` for a batch on the other.

Three forms. ``dense`` keeps whole rows; ``top_k`` keeps K entries of each; ``factors`` keeps the queries and keys they
are computed from: O(L) numbers a head where rows are O(R L), the smaller form when every query is kept. Each is stored
in single, half or 8-bit precision.

What ``top_k`` does with the rest of a row, its tail, is a choice. As one ``bucket`` the tail's mass is compared with
the student's mass on the same keys: never above the true divergence, and blind to what happens inside. ``sampled``
draws keys for it: every entry above a threshold tau is kept as it is, and of those below, keys are drawn with
probability T / tau to stand for tau each (systematic threshold sampling), so that divergence and gradient are right on
average over rows. On real rows that is worth eight times as many entries (docs/signals.md).

``StoredOutputs`` keeps what heads gave instead of where they looked, for targets other than attention rows.

Shapes: M heads of one layer, R query rows, L tokens of the sample, K kept entries, D head size,
G key/value heads that the M heads use.
"""

from collections.abc import Sequence

from torch import Tensor

from seekr_cl.attention.stored.dense import StoredDense
from seekr_cl.attention.stored.factors import StoredFactors
from seekr_cl.attention.stored.outputs import StoredOutputs
from seekr_cl.attention.stored.top_k import StoredTopK
from seekr_cl.attention.teacher_rows import TeacherRows

StoredRows = StoredDense | StoredTopK | StoredFactors
StoredSignal = StoredRows | StoredOutputs
BY_TENSOR: dict[str, type[StoredSignal]] = {
    "out": StoredOutputs, "q": StoredFactors, "key": StoredTopK, "code": StoredDense,
}  # fmt: skip
"""Each form by the tensor that tells it from those behind it."""


def stored_from(tensors: dict[str, Tensor]) -> StoredSignal:
    """The stored form that has these tensors.

    Raises:
        ValueError: if they are those of none.
    """
    return next(form for name, form in BY_TENSOR.items() if name in tensors or form is StoredDense).from_tensors(
        tensors
    )


def join_layers(parts: Sequence[StoredSignal]) -> StoredSignal:
    """The heads of several layers of one sample behind one another, in their one form."""
    return type(parts[0]).join(parts)  # type: ignore[arg-type]


def collate_rows(parts: Sequence[StoredSignal], starts: list[int], num_queries: int, padded: int) -> TeacherRows:
    """The teacher rows of a batch from samples that all have the same form, sample after sample.

    Args:
        parts: each sample's rows.
        starts: where each sample's first token stands.
        num_queries: rows a pair is padded to.
        padded: length of the padded sequence.
    """
    return type(parts[0]).collate(parts, starts, num_queries, padded)  # type: ignore[arg-type, return-value]

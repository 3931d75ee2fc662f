"""What the official code takes for the same: github jinghan1he/SEEKR, commit 22fe447 (docs/planning.md)."""

from dataclasses import dataclass

from seekr_cl.planning.shape import ModelShape

HEADS = 128
"""Its head budget."""
QUERIES = 100
"""The paper's query budget; the script's default is all."""


@dataclass(frozen=True, slots=True)
class OfficialCost:
    """Bytes of one sample.

    Attributes:
        logits: float32, the whole vocabulary at every position.
        attention: bfloat16 rows of the chosen heads at ``QUERIES`` queries.
        attention_all: the same at all queries.
        held: all heads' rows from before and after a task, both in RAM for their difference, at ``QUERIES`` queries.
        held_all: the same at all queries.
    """

    logits: int
    attention: int
    attention_all: int
    held: int
    held_all: int


def official_cost(shape: ModelShape, tokens: int) -> OfficialCost:
    """Bytes of one sample of so many tokens; the code pads all samples to the longest."""
    heads = sum(shape.heads.values())
    row, queries = 2 * tokens, min(QUERIES, tokens)
    chosen = min(HEADS, heads)
    return OfficialCost(
        logits=4 * tokens * shape.vocabulary,
        attention=chosen * queries * row,
        attention_all=chosen * tokens * row,
        held=2 * heads * queries * row,
        held_all=2 * heads * tokens * row,
    )

"""Encoded examples become padded tensors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seekr_cl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""Label of a token that is not learned, as PyTorch and transformers have it."""
Spans = tuple[tuple[int, int], ...]
"""Begin and end of runs of tokens."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens.

    Attributes:
        input_ids: Prompt, completion and end-of-text token; or a whole conversation.
        completion_start: Where the last answer begins.
        prompt_tokens_cut: How many tokens were cut off the left to make it fit.
        learnt: Begin and end of each run of tokens to learn, in order; ``None`` if it is all from
            ``completion_start`` to the end.
    """

    input_ids: list[int]
    completion_start: int
    prompt_tokens_cut: int
    learnt: Spans | None = None

    @property
    def spans(self) -> Spans:
        """Begin and end of each run of tokens to learn."""
        return spans_of(self.learnt, self.completion_start, len(self.input_ids))

    @property
    def learnable(self) -> int:
        """How many tokens are learned: those that have one before them to be predicted from."""
        return sum(end - max(1, begin) for begin, end in self.spans)


def spans_of(learnt: Spans | None, completion_start: int, length: int) -> Spans:
    """Begin and end of each run of tokens to learn, where most samples have one that runs to the end."""
    return ((completion_start, length),) if learnt is None else learnt


def labels_of(input_ids: list[int], spans: Spans, ignore: int = IGNORE) -> list[int]:
    """The tokens to learn, and ``ignore`` in the place of every other."""
    labels = [ignore] * len(input_ids)
    for begin, end in spans:
        labels[begin:end] = input_ids[begin:end]
    return labels


def collate(
    encoded: list[Encoded], pad_id: int, side: str = "right", multiple: int = 1, label_ignore: int = IGNORE
) -> "dict[str, Tensor]":
    """Pad examples on the ``"right"`` or ``"left"`` to one length, a multiple of ``multiple``.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` [B, L], these ``label_ignore`` where nothing is to be learned;
        ConfigError for an empty batch, an unknown side, or a multiple below 1.
    """
    import torch

    if not encoded:
        raise ConfigError("cannot make a batch of no examples; give at least one")
    if side not in ("right", "left"):
        raise ConfigError(f"padding side must be 'right' or 'left', not {side!r}")
    if multiple < 1:
        raise ConfigError(f"multiple must be 1 or more, not {multiple!r}")
    longest = max(len(item.input_ids) for item in encoded)
    shape = (len(encoded), -(-longest // multiple) * multiple)
    batch = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, label_ignore, dtype=torch.long),
    }
    for row, item in enumerate(encoded):
        length = len(item.input_ids)
        first = shape[1] - length if side == "left" else 0
        ids = torch.tensor(item.input_ids, dtype=torch.long)
        batch["input_ids"][row, first : first + length] = ids
        batch["attention_mask"][row, first : first + length] = 1
        batch["labels"][row, first : first + length] = torch.tensor(labels_of(item.input_ids, item.spans, label_ignore))
    return batch

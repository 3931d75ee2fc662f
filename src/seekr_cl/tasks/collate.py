"""Encoded examples become padded tensors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seekr_cl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""Label of a token that is not learned, as PyTorch and transformers have it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens.

    Attributes:
        input_ids: Prompt, completion and end-of-text token.
        completion_start: Where the tokens to learn begin; they run to the end.
        prompt_tokens_cut: How many tokens were cut off the left to make it fit.
    """

    input_ids: list[int]
    completion_start: int
    prompt_tokens_cut: int


def collate(
    encoded: list[Encoded], pad_id: int, side: str = "right", multiple: int = 1, label_ignore: int = IGNORE
) -> "dict[str, Tensor]":
    """Pad examples to one length.

    Args:
        encoded: The examples of a batch.
        pad_id: The token to pad with.
        side: ``"right"`` or ``"left"``.
        multiple: Pad to a multiple of this length.
        label_ignore: The label of every token that is not to be learnt.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each of shape (examples, length).

    Raises:
        ConfigError: An empty batch, an unknown side, or a multiple below 1.
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
        batch["labels"][row, first + item.completion_start : first + length] = ids[item.completion_start :]
    return batch

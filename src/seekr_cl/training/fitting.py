"""How a task's examples become tokens that fit a model."""

import warnings

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.config.rates import NoEffectWarning
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import DataError, TooLongError
from seekr_cl.models.context import DEFAULT_LENGTH, context_length
from seekr_cl.tasks import Encoded, Encoder, Example, Task


def make_encoder(config: SeekrConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder for a model: as long as asked for, never longer than the model's context."""
    return encoder_within(config, tokenizer, context_length(model))


def encoder_within(config: SeekrConfig, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Encoder:
    """The encoder for a model with this context, in tokens; ``None`` where nothing limits it."""
    asked = config.max_length
    if asked is not None and context is not None and asked > context:
        warnings.warn(
            f"max_length: {asked} is more than the model's context, using {context}", NoEffectWarning, stacklevel=3
        )
    length = min(asked or DEFAULT_LENGTH, context or asked or DEFAULT_LENGTH)
    boundary = config.prompt_boundary or "separate"
    return Encoder(tokenizer, length, boundary, config.max_prompt_length, config.max_answer_length, config.chat)


def fitting(task: Task, encoder: Encoder, config: SeekrConfig) -> tuple[list[Example], list[Encoded]]:
    """The training examples and their tokens; those whose completion does not fit are refused or left out.

    Raises:
        DataError: naming the first example whose completion is too long, unless ``long_completions`` is ``skip``.
    """
    kept: list[tuple[Example, Encoded]] = []
    for example in task.train:
        try:
            kept.append((example, encoder.encode(example)))
        except TooLongError:
            if config.long_completions == "refuse":
                raise
    left_out = len(task.train) - len(kept)
    if not kept:
        raise DataError(f"task '{task.name}': no completion fits into {encoder.max_length} tokens; raise max_length")
    if left_out:
        warnings.warn(
            f"task '{task.name}': {left_out} of {len(task.train)} examples left out, their completions are too long",
            NoEffectWarning,
            stacklevel=2,
        )
    return [example for example, _ in kept], [encoded for _, encoded in kept]

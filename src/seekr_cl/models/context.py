"""How much text a model can take."""

from transformers import PreTrainedModel

DEFAULT_LENGTH = 1024
"""Tokens of prompt and answer where neither the user nor the model sets a limit."""


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence the model's config allows, if it says so, less a prompt's virtual tokens (PEFT)."""
    adapters = getattr(model, "peft_config", None) or {}
    virtual = max((getattr(one, "num_virtual_tokens", 0) for one in adapters.values()), default=0)
    # Of a pool of prompts only a few stand before a text.
    virtual = getattr(model, "virtual_tokens", virtual)
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        length = getattr(config, key, None)
        if isinstance(length, int) and length > 0:
            return length - virtual
    return None

"""The model as it is to be trained: all weights, a new adapter, or the one it comes with."""

import os
from typing import Any

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError
from seekr_cl.models.peft_adapters import check_same, put_adapter


def adapted(model: Any, config: SeekrConfig, source: str | os.PathLike[str]) -> Any:
    """The model as it is to be trained: with a new adapter, with the one it comes with, or as it is.

    Args:
        model: as ``load_model`` gave it.
        config: all settings.
        source: where the model comes from.

    Raises:
        ConfigError: if the adapter does not fit the model, or is not the one that the model comes with.
    """
    given = config.peft
    if hasattr(model, "peft_config"):
        if config.method.kind.adapters:
            if config.method.kind.goes_on_from(model):
                return model
            raise ConfigError(
                f"--model: {source} is an adapter, and method {config.method.name} trains adapters of its own; "
                "merge it first (seekr export --merge)"
            )
        own = getattr(model, "method", None) if getattr(model, "by_question", False) else None
        if own is not None:
            raise ConfigError(
                f"--model: {source} was written by method {own}, which chooses adapters by the question; go on with "
                f"method {own}, or begin with the base model"
            )
        check_same(model, given)
        return model
    if given is None and config.quantization is not None:
        raise ConfigError(f"quantization: weights in {config.quantization} cannot be trained; set peft (lora)")
    return model if given is None else put_adapter(model, given, os.fspath(source), config.seed)

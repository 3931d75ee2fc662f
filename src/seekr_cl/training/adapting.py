"""The model as it is to be trained, loaded as the settings say: all weights, a new adapter, or the one it has."""

import os
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError, ModelError
from seekr_cl.memory import model_hash
from seekr_cl.models.loading import load_model
from seekr_cl.models.peft_adapters import check_same, put_adapter
from seekr_cl.models.source import ModelSource, name_of


def load_configured(
    source: ModelSource | str | os.PathLike[str], config: SeekrConfig, empty: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer with a config's dtype, quantization and trust in remote code.

    Raises:
        ModelError: if it is not there or cannot be loaded.
        ConfigError: if what the quantization needs is not installed.
    """
    given = source if isinstance(source, ModelSource) else ModelSource(source)
    return given.open(config.dtype, config.trust_remote_code, config.quantization, empty)


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
        own = getattr(model, "method", None) if getattr(model, "query_conditioned", False) else None
        if own is not None:
            raise ConfigError(
                f"--model: {source} was written by method {own}, which chooses adapters by the query; go on with "
                f"method {own}, or begin with the base model"
            )
        check_same(model, given)
        return model
    if given is None and config.quantization is not None:
        raise ConfigError(f"quantization: weights in {config.quantization} cannot be trained; set peft (lora)")
    return model if given is None else put_adapter(model, given, os.fspath(source), config.seed)


def require_base(source: ModelSource, config: SeekrConfig) -> None:
    """Refuses an adapter on a loaded model that nobody could load again: an adapter folder only names its base.

    Raises:
        ModelError: if the object does not say where it came from, or is no longer what lies there.
    """
    if not source.loaded:
        name_of(source.model)
        return
    if hasattr(source.model, "peft_config") or (config.peft is None and not config.method.kind.adapters):
        return
    advice = "save it with save_pretrained and pass that folder"
    if not name_of(source.model):
        raise ModelError(f"model: an adapter names the model that it belongs to, and this object has no name; {advice}")
    dtype = str(source.model.dtype).removeprefix("torch.")
    former, _ = load_model(source.name, dtype, config.trust_remote_code)
    if model_hash(former) != model_hash(source.model):
        raise ModelError(
            f"model: its weights are no longer those of {source.name}, which an adapter would name; {advice}"
        )

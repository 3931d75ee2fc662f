"""A model as users have it: a folder, a name on the Hub, or an object in memory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.errors import ModelError
from seekr_cl.models.loading import load_model, load_tokenizer


def name_of(model: Any) -> str:
    """What messages, adapters and records call a model: its path or name.

    Raises:
        ModelError: if it is neither a path, a name nor a loaded model.
    """
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if is_loaded(model):
        return str(getattr(model.config, "name_or_path", "") or "")
    raise ModelError(
        f"model: a {type(model).__name__} is neither a model folder, a name on the Hub nor a loaded "
        "transformers or PEFT model"
    )


def is_loaded(model: Any) -> bool:
    """Whether it is a model in memory: transformers', or PEFT's around one."""
    return isinstance(model, PreTrainedModel) or (hasattr(model, "peft_config") and hasattr(model, "base_model"))


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a user gave as the model.

    Attributes:
        model: a folder, a name on the Hub, or a loaded model.
        processing_class: its tokenizer, where that is not the one that comes with it.
    """

    model: Any
    processing_class: PreTrainedTokenizerBase | None = None

    @property
    def name(self) -> str:
        """Path or name; of a loaded model where it came from, and "a loaded model" where it does not say."""
        return name_of(self.model) or "a loaded model"

    @property
    def loaded(self) -> bool:
        """Whether it is in memory already."""
        return is_loaded(self.model)

    def open(
        self,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        quantization: str | None = None,
        empty: bool = False,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer; a loaded model is given back as it is. Arguments as for ``load_model``.

        Raises:
            ModelError: if it is not there, cannot be loaded, or no tokenizer is known.
        """
        own = self.processing_class
        if own is not None and not isinstance(own, PreTrainedTokenizerBase):
            raise ModelError(
                f"processing_class: a {type(own).__name__} is not a tokenizer; load it with "
                "AutoTokenizer.from_pretrained, or leave it out"
            )
        name = name_of(self.model)
        if not self.loaded:
            network, tokenizer = load_model(name, dtype, trust_remote_code, quantization, empty)
            return network, own or tokenizer
        if quantization is not None:
            raise ModelError(
                "quantization: is for a model that is loaded here; load the object with it, or name a folder"
            )
        if own is None:
            if not Path(name).is_dir() and name.count("/") != 1:
                raise ModelError(
                    "processing_class: the loaded model does not say where it comes from; pass its tokenizer"
                )
            own = load_tokenizer(name, trust_remote_code)
        return self.model, own

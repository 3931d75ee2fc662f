"""The models that choose adapters by the query, by the name of their method."""

from pathlib import Path
from typing import Any

from seekr_cl.errors import ModelError
from seekr_cl.models.prompt_pool import PromptPoolModel
from seekr_cl.models.query_adapters import QueryAdapterModel
from seekr_cl.models.shared_lora import SharedLoraModel

QUERY_MODELS: dict[str, type[QueryAdapterModel]] = {one.method: one for one in (PromptPoolModel, SharedLoraModel)}
"""What a folder with a ``seekr_method.json`` may be loaded as."""


def query_model_class(content: dict[str, Any], folder: Path) -> type[QueryAdapterModel]:
    """What a folder's ``seekr_method.json`` asks to be loaded as.

    Raises:
        ModelError: if this version knows no such method.
    """
    name = content["method"]
    if name not in QUERY_MODELS:
        raise ModelError(f"{folder}: written by method {name!r}, which this version of seekr-cl cannot load; update it")
    return QUERY_MODELS[name]

"""A model's shape from its config: no weights, no GPU."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from seekr_cl.attention import AttentionCall, AttentionTap
from seekr_cl.errors import ModelError, first_line, nearest
from seekr_cl.models.context import context_length
from seekr_cl.models.peft_adapters import WEIGHTS, base_of, is_adapter, put_adapter
from seekr_cl.system import reading


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One attention layer.

    Attributes:
        heads: query heads.
        kv_heads: key/value heads.
        size: components of a head's query and key.
        sinks: whether a part of each row's mass goes to a sink.
    """

    heads: int
    kv_heads: int
    size: int
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides the costs.

    Attributes:
        name: the model's type.
        layers: the attention layers that can be tapped.
        vocabulary: size of an output distribution.
        parameters: number of weights; 0 if it could not be counted.
        context: longest sequence, if the config says so.
        hidden: components of a token's embedding.
        config: the model's.
    """

    name: str
    layers: dict[int, LayerShape]
    vocabulary: int
    parameters: int
    context: int | None
    hidden: int = 0
    config: PretrainedConfig | None = field(default=None, compare=False, repr=False)

    @property
    def heads(self) -> dict[int, int]:
        """Query heads of each layer."""
        return {number: layer.heads for number, layer in self.layers.items()}

    def build(self) -> Any:
        """The model without storage."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, attn_implementation="eager")


def read_shape(source: str | os.PathLike[str]) -> ModelShape:
    """The shape of the model in a folder, or of a ``config.json`` alone.

    The model is built without storage and asked for its attention layers as the tap would ask it; where that needs
    real numbers (a router of experts), the config's own fields are taken.

    Args:
        source: a folder with ``config.json``, or such a file. Code that comes with it is not run.

    Raises:
        ModelError: if it is missing, not JSON, of an unknown type or not a language model with attention.
    """
    config = _read_config(Path(base_of(Path(source)) if is_adapter(Path(source)) else source))
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except Exception as error:
        raise ModelError(
            f"{source}: no causal language model can be made of this config ({first_line(error)})"
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        layers = _tapped(model)
    except ModelError:
        raise
    except Exception:
        layers = _from_fields(text, str(source))
    hidden = int(model.get_input_embeddings().weight.shape[1])
    context = context_length(model)
    return ModelShape(config.model_type, layers, int(text.vocab_size), parameters, context, hidden, config)


def adapter_size(source: str | os.PathLike[str], peft: Mapping[str, Any] | None) -> int | None:
    """Bytes of the adapter that is trained: that of an adapter folder, or the one the ``peft`` setting makes.

    Returns:
        ``None`` if all weights are trained.

    Raises:
        ConfigError: if the adapter does not fit the model.
    """
    if is_adapter(Path(source)):
        weights = Path(source) / WEIGHTS
        return weights.stat().st_size if weights.is_file() else None
    if peft is None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_read_config(Path(source)), attn_implementation="eager")
        adapted = put_adapter(model, peft, str(source), 0)
    # PEFT keeps adapters in single precision on whatever base.
    return sum(4 * weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def _read_config(path: Path) -> PretrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"{file}: no such file; name a model folder or its config.json")
    try:
        content = reading.read_json(file)
        kind = content["model_type"]
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON ({error}); name a model folder or its config.json") from error
    except (KeyError, TypeError) as error:
        raise ModelError(f"{file}: has no 'model_type', so it is not a model's config") from error
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(f"{file}: model_type {kind!r} is unknown to transformers{nearest(str(kind), CONFIG_MAPPING)}")
    try:
        return CONFIG_MAPPING[kind].from_dict(content)
    except Exception as error:
        raise ModelError(f"{file}: not a usable config of type {kind} ({first_line(error)})") from error


def _tapped(model: Any) -> dict[int, LayerShape]:
    found: dict[int, LayerShape] = {}

    def note(call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        shape = call.q_BHLD.shape
        found[call.layer] = LayerShape(shape[1], call.k_BKLD.shape[1], shape[3], call.sink_H is not None)
        return output_BLHD

    ids = torch.zeros((1, 2), dtype=torch.long, device="meta")
    with AttentionTap(model) as tap, tap.use(note), torch.no_grad():
        model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return dict(sorted(found.items()))


def _from_fields(config: Any, source: str) -> dict[int, LayerShape]:
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise ModelError(f"{source}: its config names no num_attention_heads")
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    one = LayerShape(heads, getattr(config, "num_key_value_heads", None) or heads, size, config.model_type == "gpt_oss")
    return {number: one for number, kind in enumerate(kinds) if kind.endswith("attention") and "linear" not in kind}

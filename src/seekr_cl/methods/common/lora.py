"""What methods with low-rank adapters of their own share; PEFT does the work.

The adapters are merged at the end of a task, so that what is written is a plain model, and the next task's adapters are
put on its layers.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from seekr_cl.errors import ConfigError
from seekr_cl.models.adapter_layers import leave_out
from seekr_cl.models.query_adapters import ADAPTER
from seekr_cl.settings import Ge, Gt, Lt, Settings


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(Settings):
    """Settings of a low-rank adapter.

    Attributes:
        rank: of the adapter (PEFT's ``r``).
        alpha: its output is scaled by alpha / rank.
        dropout: on its input, in training.
        targets: names of the linear layers that get one, separated by commas; ``all-linear``; default PEFT's for the
            model's family.
    """

    rank: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 32.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    targets: str | None = None

    def lora(self) -> LoraConfig:
        """As PEFT knows it."""
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=layer_names(self.targets),
        )


def layer_names(targets: str | None) -> str | list[str] | None:
    """The setting as PEFT takes it."""
    if targets is None or targets == "all-linear":
        return targets
    return [name.strip() for name in targets.split(",") if name.strip()]


def attach(
    model: PreTrainedModel,
    config: PeftConfig,
    seed: int,
    key: str = "method.targets",
    make: Callable[[PreTrainedModel, PeftConfig], Any] = get_peft_model,
) -> Any:
    """The model with fresh adapters; everything else is frozen.

    Args:
        model: changed in place.
        config: PEFT's.
        seed: the adapters' first weights are drawn from it, and no other generator is disturbed.
        key: the setting that a refusal of PEFT's is about.
        make: what puts them on.

    Raises:
        ConfigError: if PEFT cannot put them on this model.
    """
    leave_out(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            wrapped = make(model, config)
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{key}: {reason}; name linear layers of this model, or all-linear") from error
    # Reentrant checkpointing drops the gradient of a block whose input asks for none.
    wrapped.enable_input_require_grads()
    return wrapped


def name_base(config: PeftConfig, model: Any) -> None:
    """Has an adapter's config name the model it is put on by a path that is right from everywhere."""
    place = model.name_or_path
    config.base_model_name_or_path = os.path.abspath(place) if Path(place).exists() else place


def own_adapter(settings: AdapterSettings, model: Any, goes_on: bool, seed: int) -> Any:
    """The model with a method's one adapter: the one that it comes with, or a fresh one.

    Args:
        settings: of the adapter.
        model: that is learned on.
        goes_on: whether it comes with the method's adapter.
        seed: of a fresh one.

    Raises:
        ConfigError: if it comes with another adapter than the settings say.
    """
    if goes_on:
        check_same_adapter(settings, model.peft_config[ADAPTER])
        model.enable_input_require_grads()
        return model
    config = settings.lora()
    wrapped = attach(model, config, seed)
    name_base(config, wrapped)
    return wrapped


def merged(wrapped: Any) -> PreTrainedModel:
    """The plain model with the adapters added into its weights; all of these can be trained again."""
    wrapped.disable_input_require_grads()
    model = wrapped.merge_and_unload()
    model.requires_grad_(True)
    return model


def lora_layers(wrapped: Any) -> Iterator[tuple[str, LoraLayer]]:
    """Every layer with an adapter, by the name it has in the plain model."""
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def one_lora(model: Any) -> bool:
    """Whether a model comes with one low-rank adapter, and not with several that are chosen by the query."""
    kinds = [config.peft_type for config in getattr(model, "peft_config", {}).values()]
    return kinds == ["LORA"] and not getattr(model, "query_conditioned", False)


def check_same_adapter(settings: AdapterSettings, config: Any) -> None:
    """Refuses settings of another adapter than the one that a model comes with.

    Args:
        settings: as they are asked for.
        config: PEFT's of the adapter that is there.

    Raises:
        ConfigError: naming the setting.
    """
    asked = settings.lora()
    for key, ours in (("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
        if getattr(config, ours) != getattr(asked, ours):
            raise ConfigError(
                f"method.{key}: {getattr(settings, key)}, but the model comes with an adapter of {key} "
                f"{getattr(config, ours)}; keep that, or begin with the base model"
            )

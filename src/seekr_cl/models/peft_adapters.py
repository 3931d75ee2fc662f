"""Adapters: a few trained weights beside a model whose own stay as they are, by PEFT.

An adapter folder is what learning writes instead of a model: ``adapter_config.json`` names the base model, and
``adapter_model.safetensors`` holds the trained weights. It is taken wherever a model folder is; the next task goes on
with the same adapter. A model may have several: the first, PEFT's "default", lies in the folder itself, the others in
folders of their own beside it.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from seekr_cl.distributed.dtensor import state_of, whole
from seekr_cl.errors import ConfigError, ModelError, first_line, nearest
from seekr_cl.models.adapter_layers import leave_out, put_exactly, special_layers
from seekr_cl.models.whole import require_same_rows
from seekr_cl.placement import PEFT, declare, under, unknown
from seekr_cl.system import reading
from seekr_cl.system.files import plain_name, write_json
from seekr_cl.system.removal import remove_file

if TYPE_CHECKING:
    # Importing PEFT takes a second, which only those who use it shall pay.
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, ACTIVE = "adapter_config.json", "adapter_model.safetensors", "seekr_adapters.json"
DEFAULT = "default"
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
"""What ``peft: lora`` means: every linear layer, as QLoRA found to be needed, attention's q and k among them."""

PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING")
"""Prompts that are saved as they are trained, so that the next task can go on with them."""

_OWN_BUSINESS = ("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")
_LARGEST_CONFIG = 1 << 20
_OTHER_BASE = "it was trained on another base model than base_model_name_or_path says"


def _lora_keys() -> list[str]:
    from peft import LoraConfig

    return [one.name for one in dataclasses.fields(LoraConfig) if one.init and one.name not in _OWN_BUSINESS]


declare(PEFT, _lora_keys, under(PEFT), lambda _: "it is a setting of peft_type: LORA")


def read_peft(value: Any) -> dict[str, Any] | None:
    """The ``peft`` setting as a mapping with ``peft_type``, checked against PEFT's config of that type.

    Args:
        value: ``None`` trains all weights; a type's name, ``lora`` being ``LORA`` above; a mapping; or PEFT's config.

    Raises:
        ConfigError: for an unknown type or key, naming the nearest, or a value PEFT does not accept.
    """
    if value is None:
        return None
    if isinstance(value, str):
        given = LORA if value.upper() == LORA["peft_type"] else {"peft_type": value}
    elif isinstance(value, Mapping):
        given = dict(value)
    elif hasattr(value, "peft_type") and hasattr(value, "to_dict"):
        given = _as_mapping(value)
    else:
        raise ConfigError(
            f"peft: {value!r} is neither a PEFT type such as lora, nor a PEFT config, nor a mapping with peft_type"
        )
    given = {**given, "peft_type": str(given.get("peft_type", LORA["peft_type"])).upper()}
    make_config(given)
    return given


def _as_mapping(config: "PeftConfig") -> dict[str, Any]:
    """What a PEFT config says beside its type's defaults."""
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "CAUSAL_LM"):
        raise ConfigError(f"peft.task_type: {task} is not what is trained here; use CAUSAL_LM")
    content, defaults = as_json(config), as_json(type(config)())
    keys = {field.name for field in dataclasses.fields(config) if field.init} - set(_OWN_BUSINESS)
    given = {key: value for key, value in content.items() if key in keys and value != defaults.get(key)}
    return given | {"peft_type": content["peft_type"]}


def make_config(given: Mapping[str, Any]) -> "PeftConfig":
    """PEFT's config object of a mapping.

    Raises:
        ConfigError: as ``read_peft``.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig, TaskType

    types = {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = given["peft_type"]
    if name not in types:
        raise ConfigError(f"peft.peft_type: '{name.lower()}' is unknown to PEFT{nearest(name, types)}")
    keys = [one.name for one in dataclasses.fields(types[name]) if one.init and one.name not in _OWN_BUSINESS]
    for key in given:
        if key in _OWN_BUSINESS:
            raise ConfigError(f"peft.{key}: is set by the library; remove it")
        if key not in keys and key != "peft_type":
            raise ConfigError(f"peft of {name}: {unknown(key, PEFT, ['peft_type', *keys], listed=False)}")
    init = given.get("init_lora_weights", True)
    if not any(init is plain or init == plain for plain in _PLAIN_INITS):
        raise ConfigError(
            f"peft.init_lora_weights: '{init}' changes the base model's own weights, so the adapter would not fit the "
            "base model it names; use true, gaussian or orthogonal"
        )
    if issubclass(types[name], PromptLearningConfig) and (name not in PROMPTS or given.get("prefix_projection")):
        raise ConfigError(
            f"peft.peft_type: PEFT saves the output of a {name} prompt's network and not the network, so the next "
            "task could not continue it; use prompt_tuning, prefix_tuning without projection, or lora"
        )
    values = {key: value for key, value in given.items() if key != "peft_type"}
    try:
        return types[name](task_type=TaskType.CAUSAL_LM, **values)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"peft: {first_line(error)}") from error


def put_adapter(model: "PreTrainedModel", given: Mapping[str, Any], source: str, seed: int) -> "PeftModel":
    """A new adapter on a model; only its weights are trained.

    Args:
        model: its own weights stay as they are.
        given: the ``peft`` setting.
        source: where the model comes from; the adapter's config will name it.
        seed: the adapter's initial weights come from it.

    Raises:
        ConfigError: if the adapter does not fit the model, such as for a layer's name that it has not.
    """
    from peft import get_peft_model

    config = make_config(given)
    config.base_model_name_or_path = model.name_or_path
    leave_out(model, config)
    with _drawing(seed), _quiet():
        try:
            found = get_peft_model(model, config)
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            raise ConfigError(f"peft: does not fit this model: {first_line(error)}") from error
    config.base_model_name_or_path = os.path.abspath(source) if Path(source).exists() else source
    if unfit := special_layers(found):
        raise ConfigError(
            f"peft.target_modules: {unfit[0]} is not a plain linear layer (a router, or a grouped one); name others"
        )
    if not any(weight.requires_grad for weight in found.parameters()):
        raise ConfigError("peft: leaves no weight to train; name other target_modules")
    return found


def check_same(model: nn.Module, given: Mapping[str, Any] | None) -> None:
    """Makes sure that the adapter a model comes with is the one asked for.

    Raises:
        ConfigError: naming the first key that differs.
    """
    configs = getattr(model, "peft_config", None)
    if configs is None or given is None:
        return
    has, asked = as_json(configs[DEFAULT]), as_json(make_config(given))
    for key in given:
        if has.get(key) != asked.get(key):
            # "all-linear" has become the names of the layers.
            if asked.get(key) == "all-linear":
                continue
            raise ConfigError(
                f"peft.{key}: the adapter that --model names has {has.get(key)!r}, not {asked.get(key)!r}; remove peft "
                "to continue with that adapter, or merge it first (seekr export --merge)"
            )


def as_json(config: "PeftConfig") -> dict[str, Any]:
    """A PEFT config as JSON, sets in order."""
    content = json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value, key=str)))
    return content | {"peft_type": str(getattr(config.peft_type, "value", config.peft_type))}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def refuse_mixed(folder: Path) -> None:
    """Refuses folders of which one cannot say what is to be loaded.

    Raises:
        ModelError: for a model and an adapter in one folder, and for adapters that all lie in folders of their own.
    """
    if (folder / CONFIG).is_file() and (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: holds a model (config.json) and an adapter ({CONFIG}); move the adapter into a folder of its "
            "own and name that"
        )
    if folder.is_dir() and not (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
        names = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        if names:
            raise ModelError(
                f"{folder}: holds adapters in folders of their own ({', '.join(names)}); name one, such as "
                f"{folder / names[0]}"
            )


def base_of(folder: Path) -> str:
    """The base model that an adapter folder names: a folder or a Hub name.

    Raises:
        ModelError: if its config cannot be used, or the folder is not there.
    """
    content = _read_config(folder)
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / CONFIG}: names no base model; set base_model_name_or_path to its folder")
    beside = folder / base
    if not Path(base).exists() and beside.exists():
        base = str(beside)
    if is_adapter(Path(base)):
        raise ModelError(
            f"{folder / CONFIG}: the base model {base} is an adapter itself; merge that first (seekr export --merge) "
            "and name the merged model in base_model_name_or_path"
        )
    if not Path(base).exists() and (Path(base).is_absolute() or base.count("/") != 1):
        raise ModelError(
            f"{folder / CONFIG}: the base model {base} is not there; put it there, or set base_model_name_or_path to "
            "where it is"
        )
    return base


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """A base model with the adapters of a folder on it, those that were active to be trained further.

    Raises:
        ModelError: if they are damaged, of an unknown kind or do not fit the model.
    """
    from peft import PeftModel

    from seekr_cl.models.query_adapters import read_query_config
    from seekr_cl.models.query_models import query_model_class

    content_of = read_query_config(folder)
    places = {DEFAULT: folder}
    active = [DEFAULT]
    try:
        if (folder / ACTIVE).is_file():
            content = reading.read_json(folder / ACTIVE)
            active = [str(name) for name in content["active"]]
            places |= {name: folder / plain_name(name, folder / ACTIVE) for name in content["others"]}
            if not active or not places.keys() >= set(active):
                raise ModelError(f"{folder / ACTIVE}: 'active' names {active}, there are {list(places)}")
        for place in places.values():
            _read_config(place)
            if not (place / WEIGHTS).is_file():
                raise ModelError(f"{place}: holds no {WEIGHTS}; restore it from a copy")
            _check_layers(model, place)
            require_same_rows(model, place / WEIGHTS)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            # PEFT loads a prompt only as one that is not trained.
            prompt = _read_config(folder)["peft_type"] in PROMPTS
            found: Any
            if content_of is not None:
                found = query_model_class(content_of, folder).load(model, folder)
            else:
                found = PeftModel.from_pretrained(model, str(folder), is_trainable=not prompt)
            if prompt:
                found.peft_config[DEFAULT].inference_mode = False
                found.prompt_encoder[DEFAULT].requires_grad_(True)
            for name, place in places.items():
                if name != DEFAULT:
                    found.load_adapter(str(place), name, is_trainable=name in active)
            if active != [DEFAULT]:
                found.base_model.set_adapter(active)
            if content_of is not None:
                found.load_selector(folder, content_of)
        # PEFT leaves those as they were drawn, and only warns of it.
        lacking = any("missing adapter keys" in str(one.message) for one in said)
        if lacking and not all(put_exactly(found, place, name) for name, place in places.items()):
            raise ModelError(f"{folder}: lacks weights for some of its layers; {_OTHER_BASE}")
        return found
    except ModelError:
        raise
    except Exception as error:
        said_by_peft = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
        raise ModelError(f"{folder}: its adapter cannot be put on the base model ({said_by_peft})") from error


def _check_layers(model: nn.Module, folder: Path) -> None:
    """PEFT passes over weights of layers that the base model has not."""
    modules = {name for name, _ in model.named_modules()}
    with safe_open(folder / WEIGHTS, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            parts = key.removeprefix("base_model.model.").split(".")
            number = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
            layer = ".".join(parts[: (number or 0) + 1])
            if number is not None and layer not in modules:
                raise ModelError(f"{folder / WEIGHTS}: has weights for {layer}, which is not there; {_OTHER_BASE}")


def own_state(model: "PeftModel") -> dict[str, Tensor]:
    """Of a model's state what belongs to its adapters, by the names it has there.

    A sharded prompt is whole afterwards, and the model no longer one to train: PEFT asks the prompt for what it saves.
    """
    from peft import get_peft_model_state_dict

    for module in nn.ModuleDict(getattr(model, "prompt_encoder", None)).modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(whole(weight).detach()))
    state = state_of(model)
    wanted = set()
    for name in model.peft_config:
        own = get_peft_model_state_dict(model, state, name, save_embedding_layers=False)
        wanted |= {id(tensor) for tensor in own.values()}
    return {name: tensor for name, tensor in state.items() if id(tensor) in wanted}


def save_adapter(model: "PeftModel", folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Writes a model's adapters; the base model is not written again.

    Args:
        model: with its adapters.
        folder: where they go.
        tensors: ``own_state``, if the model holds only its shards of it.
    """
    # "auto" would ask the Hub whether the base model's vocabulary has grown.
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=tensors)
    others = [name for name in model.peft_config if name != DEFAULT]
    for name in model.peft_config:
        place = folder if name == DEFAULT else folder / name
        # PEFT writes sets as they come, in another order every time.
        content = as_json(model.peft_config[name]) | {"inference_mode": True}
        write_json(place / CONFIG, content)
    remove_file(folder / "README.md")
    if others:
        write_json(folder / ACTIVE, {"active": list(model.active_adapters), "others": others})
    if getattr(model, "query_conditioned", False):
        model.save_selector(folder)


def merged(model: Any, source: str) -> Any:
    """The plain model that a model with adapters is equal to.

    Raises:
        ModelError: if it has none, or they cannot be merged into weights.
    """
    if not hasattr(model, "peft_config"):
        raise ModelError(f"{source}: holds no adapter, so there is nothing to merge; it is a plain model already")
    if getattr(model, "query_conditioned", False):
        raise ModelError(
            f"{source}: method {model.method} chooses adapters by the query, so no single change of weights is "
            "equal to it and it cannot be merged; load it with seekr_cl.load_model"
        )
    kind = str(getattr(model.peft_config[DEFAULT].peft_type, "value", "")).lower()
    if is_prompt_learning(model) or not hasattr(model, "merge_and_unload"):
        raise ModelError(f"{source}: an adapter of type {kind} is not a change of weights, so it cannot be merged")
    try:
        with _quiet():
            return model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: its adapter of type {kind} cannot be merged ({first_line(error)})") from error


def is_prompt_learning(model: nn.Module) -> bool:
    """Whether a model's adapter puts tokens or keys of its own before every sequence."""
    configs = getattr(model, "peft_config", None) or {}
    return any(config.is_prompt_learning for config in configs.values())


def _read_config(folder: Path) -> dict[str, Any]:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError("too large")
        content = reading.read_json(path)
        kind = content["peft_type"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not an adapter's config ({error}); restore it from a copy") from error
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModelError(f"{path}: peft_type {kind!r} is unknown to the installed PEFT; update peft")
    if content.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(f"{path}: task_type is {content['task_type']!r}; only adapters of causal language models fit")
    return content


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """What PEFT warns of here is either checked by this library or no concern of its user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

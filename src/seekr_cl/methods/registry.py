"""Continual-learning methods by name; a new one is a file beside this one and a line in ``_ALL``."""

import dataclasses
import os
import sys
from importlib import import_module
from typing import Any

from seekr_cl.errors import ConfigError, first_line, nearest
from seekr_cl.methods.agem import AGEM
from seekr_cl.methods.base import Method, Paper
from seekr_cl.methods.derpp import DERpp
from seekr_cl.methods.derpp_mse import DERppMSE
from seekr_cl.methods.ewc import EWC
from seekr_cl.methods.gem import GEM
from seekr_cl.methods.icarl import ICaRL
from seekr_cl.methods.inflora import InfLoRA
from seekr_cl.methods.inscl import InsCL
from seekr_cl.methods.l2p import L2P
from seekr_cl.methods.lfpt5 import LFPT5
from seekr_cl.methods.lwf import LwF
from seekr_cl.methods.multitask import MultiTask
from seekr_cl.methods.ogd import OGD
from seekr_cl.methods.olora import OLora
from seekr_cl.methods.onpolicy_replay import OnPolicyReplay
from seekr_cl.methods.osft import OSFT
from seekr_cl.methods.progressive_prompts import ProgressivePrompts
from seekr_cl.methods.replay import Replay
from seekr_cl.methods.rwalk import RWalk
from seekr_cl.methods.sapt import SAPT
from seekr_cl.methods.sdft import SDFT
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seqft import SeqFT
from seekr_cl.methods.slao import SLAO
from seekr_cl.methods.tree_lora import TreeLora
from seekr_cl.placement import declare, under

_ALL: tuple[type[Method], ...] = (
    SeqFT,
    MultiTask,
    Replay,
    DERpp,
    DERppMSE,
    Seekr,
    EWC,
    LwF,
    AGEM,
    GEM,
    OGD,
    RWalk,
    OLora,
    OSFT,
    ProgressivePrompts,
    L2P,
    SAPT,
    TreeLora,
    ICaRL,
    InsCL,
    LFPT5,
    OnPolicyReplay,
    SDFT,
    SLAO,
    InfLoRA,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}


def register_method(method: type[Method]) -> type[Method]:
    """Makes a method from outside the library known by its name; usable as a class decorator.

    Args:
        method: the class, with ``name``, ``paper`` and ``Settings``.

    Raises:
        ConfigError: if it is no method, lacks a name, or its name is taken by another.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"register_method: {method!r} is not a subclass of seekr_cl.Method")
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(
            f"register_method: {method.__qualname__} needs a name made of letters, digits and underscores"
        )
    if not isinstance(getattr(method, "paper", None), Paper):
        raise ConfigError(f"register_method: {method.__qualname__} needs a paper, seekr_cl.Paper(title, authors, url)")
    if not (isinstance(method.Settings, type) and dataclasses.is_dataclass(method.Settings)):
        raise ConfigError(f"register_method: {method.__qualname__}.Settings must be a dataclass of its settings")
    known = METHODS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ConfigError(f"register_method: '{name}' is the name of {known.__module__}.{known.__qualname__} already")
    METHODS[name] = method
    return method


def _owners(key: str) -> list[str]:
    return [name for name, one in METHODS.items() if key in {field.name for field in dataclasses.fields(one.Settings)}]


declare(
    "method",
    lambda: {field.name for one in METHODS.values() for field in dataclasses.fields(one.Settings)},
    lambda key: f"{under('method')(key)} (a setting of {', '.join(_owners(key))})",
    lambda key: f"it is a setting of method {', '.join(_owners(key))}; choose one of these, or remove it",
)


def get_method(name: str) -> type[Method]:
    """The method of that name; ``package.module:Class`` imports one from the user's own code and registers it.

    Raises:
        ConfigError: naming the nearest known one, or what is wrong with the class.
    """
    if isinstance(name, str) and ":" in name:
        return register_method(_imported(name))
    if not isinstance(name, str) or name not in METHODS:
        known = ", ".join(METHODS)
        raise ConfigError(
            f"method: '{name}' is unknown{nearest(str(name), METHODS)} (known: {known}; or package.module:Class)"
        )
    return METHODS[name]


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise ConfigError(f"method: '{name}' is not of the form package.module:Class")
    # A command does not have the current folder on its path, as ``python -m`` and scripts have.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(import_module(module), attribute, None)
    except Exception as error:
        raise ConfigError(f"method: {module} cannot be imported ({first_line(error)}); check PYTHONPATH") from error
    if found is None:
        raise ConfigError(f"method: module {module} has no {attribute}")
    return found

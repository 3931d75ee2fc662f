"""Continual-learning methods by name; a new one is a file here and a line in ``METHODS``."""

from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, ModelError
from seekr_cl.methods.agem import AGEM
from seekr_cl.methods.base import Context, Layout, LossTerm, Method, Paper
from seekr_cl.methods.derpp import DERpp
from seekr_cl.methods.derpp_mse import DERppMSE
from seekr_cl.methods.ewc import EWC
from seekr_cl.methods.gem import GEM
from seekr_cl.methods.icarl import ICaRL
from seekr_cl.methods.inscl import InsCL
from seekr_cl.methods.l2p import L2P, PromptPoolModel
from seekr_cl.methods.lfpt5 import LFPT5
from seekr_cl.methods.lwf import LwF
from seekr_cl.methods.multitask import MultiTask
from seekr_cl.methods.ogd import OGD
from seekr_cl.methods.olora import OLora
from seekr_cl.methods.onpolicy_replay import OnPolicyReplay
from seekr_cl.methods.osft import OSFT
from seekr_cl.methods.progressive_prompts import ProgressivePrompts
from seekr_cl.methods.question import QuestionModel
from seekr_cl.methods.replay import Replay
from seekr_cl.methods.rwalk import RWalk
from seekr_cl.methods.sapt import SAPT
from seekr_cl.methods.seekr import Seekr
from seekr_cl.methods.seqft import SeqFT
from seekr_cl.methods.shared_lora import SharedLoraModel
from seekr_cl.methods.tree_lora import TreeLora
from seekr_cl.suggest import nearest

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
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
QUESTION_MODELS: dict[str, type[QuestionModel]] = {one.method: one for one in (PromptPoolModel, SharedLoraModel)}
"""What a folder with a ``seekr_method.json`` may be loaded as."""


def get_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        ConfigError: naming the nearest known one.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method: '{name}' is unknown{nearest(str(name), METHODS)} (known: {', '.join(METHODS)})")
    return METHODS[name]


def question_model(content: dict[str, Any], folder: Path) -> type[QuestionModel]:
    """What a folder's ``seekr_method.json`` asks to be loaded as.

    Raises:
        ModelError: if this version knows no such method.
    """
    name = content["method"]
    if name not in QUESTION_MODELS:
        raise ModelError(f"{folder}: written by method {name!r}, which this version of seekr-cl cannot load; update it")
    return QUESTION_MODELS[name]


__all__ = ["METHODS", "Context", "Layout", "LossTerm", "Method", "Paper", "get_method"]

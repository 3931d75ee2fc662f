"""Continual-learning methods by name; a new one is a file beside this one and a line in ``_ALL``."""

from seekr_cl.errors import ConfigError, nearest
from seekr_cl.methods.agem import AGEM
from seekr_cl.methods.base import Method
from seekr_cl.methods.derpp import DERpp
from seekr_cl.methods.ewc import EWC
from seekr_cl.methods.gem import GEM
from seekr_cl.methods.icarl import ICaRL
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
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seqft import SeqFT
from seekr_cl.methods.tree_lora import TreeLora

_ALL: tuple[type[Method], ...] = (
    SeqFT,
    MultiTask,
    Replay,
    DERpp,
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


def get_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        ConfigError: naming the nearest known one.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method: '{name}' is unknown{nearest(str(name), METHODS)} (known: {', '.join(METHODS)})")
    return METHODS[name]

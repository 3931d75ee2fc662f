"""OSFT: weights move only in directions orthogonal to their largest singular ones."""

from dataclasses import dataclass
from typing import Any

from peft import OSFConfig
from transformers import PreTrainedModel

from seekr_cl.methods.base import Context, Method, Paper
from seekr_cl.methods.common.lora import attach, fraction, layer_names, merged
from seekr_cl.methods.costs import Overhead, Scale, num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class OSFTSettings:
    """Settings of OSFT.

    Attributes:
        preserved: share of each weight's singular directions, the largest ones, that stay as they are. The paper
            chooses it for every layer; PEFT's default of one half is the default here.
        targets: names of the linear layers it is done to, separated by commas; default all linear ones.
    """

    preserved: float = 0.5
    targets: str = "all-linear"

    def __post_init__(self) -> None:
        fraction(self.preserved, "method.preserved")

    def osf(self) -> OSFConfig:
        """As PEFT knows it."""
        return OSFConfig(
            task_type="CAUSAL_LM",
            effective_rank=float(self.preserved),
            target_modules=layer_names(self.targets),
        )


class OSFT(Method):
    """L = L_task over the small singular directions; gradients are projected off the large ones (PEFT's OSF).

    At each task's beginning every weight is decomposed anew, so what earlier tasks made large is preserved.
    """

    name = "osft"
    paper = Paper(
        "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        "Nayak et al., 2025",
        "https://arxiv.org/abs/2504.07097",
    )
    Settings = OSFTSettings
    adapters = True

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        context.model = attach(context.model, settings.osf(), context.seed)

    @classmethod
    def overhead(cls, settings: OSFTSettings, scale: Scale) -> Overhead:
        """The parts of the decomposed weights; the weights themselves stay beside them."""
        model = scale.build()
        base = num_bytes(model)
        return Overhead(device=num_bytes(attach(model, settings.osf(), seed=0)) - base)

    def finished_model(self) -> PreTrainedModel:
        """The model with its weights put together again."""
        return merged(self.context.model)

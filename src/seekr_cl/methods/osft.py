"""OSFT: weights move only in directions orthogonal to their largest singular ones."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from peft import OSFConfig
from peft.tuners.osf.layer import OSFLayer
from transformers import PreTrainedModel

from seekr_cl.methods.base import Context, Method, Paper
from seekr_cl.methods.common.lora import attach, layer_names, merged
from seekr_cl.settings import Gt, Le, Settings


@dataclass(frozen=True, kw_only=True)
class OSFTSettings(Settings):
    """Settings of OSFT.

    Attributes:
        preserved: share of each decomposed weight's singular directions, the largest ones, that stay as they are. The
            paper chooses it for every layer; the official LLaMA scripts preserve 0.75 or 0.25 of all; PEFT's default
            of 0.5 is the default here.
        targets: names of the linear layers that are decomposed, separated by commas; default all linear ones.
        others: what is not decomposed, such as embeddings, norms, biases and the output layer: ``trained`` freely as
            in the official code, or ``frozen`` as PEFT leaves it.
    """

    preserved: Annotated[float, Gt(0), Le(1)] = 0.5
    targets: str = "all-linear"
    others: Literal["trained", "frozen"] = "trained"

    def osf(self) -> OSFConfig:
        """As PEFT knows it."""
        return OSFConfig(
            task_type="CAUSAL_LM",
            effective_rank=float(self.preserved),
            target_modules=layer_names(self.targets),
        )


class OSFT(Method):
    """L = L_task over the small singular directions; gradients are projected off the large ones (PEFT's OSF).

    At each task's beginning every decomposed weight is decomposed anew, so what earlier tasks made large is preserved.
    All else is trained without a constraint, as in the official code: embeddings, norms, output layer.
    """

    name = "osft"
    paper = Paper(
        "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        "Nayak et al., 2025",
        "https://arxiv.org/abs/2504.07097",
    )
    Settings = OSFTSettings
    adapters = True
    weight_access = "whole"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        context.model = decomposed(context.model, settings, context.seed)

    def finished_model(self) -> PreTrainedModel:
        """The model with its weights put together again."""
        return merged(self.context.model)


def decomposed(model: PreTrainedModel, settings: OSFTSettings, seed: int) -> Any:
    """The model with its weights in two parts, of which one is trained, and the rest as ``others`` says."""
    wrapped = attach(model, settings.osf(), seed)
    if settings.others == "trained":
        decomposed = {id(module.base_layer.weight) for module in wrapped.modules() if isinstance(module, OSFLayer)}
        for weight in wrapped.parameters():
            weight.requires_grad_(id(weight) not in decomposed)
    return wrapped

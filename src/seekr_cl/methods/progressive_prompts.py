"""Progressive Prompts: one soft prompt a task before those of all earlier tasks; the model itself stays as it is."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import torch
from peft import PromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from seekr_cl.methods.base import Context, Method, Paper
from seekr_cl.methods.common.lora import attach, name_base
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.query_adapters import ADAPTER
from seekr_cl.settings import Ge, Hint, Settings


@dataclass(frozen=True, kw_only=True)
class ProgressivePromptsSettings(Settings):
    """Settings of Progressive Prompts; the defaults are those of the official T5 code.

    Attributes:
        prompt_length: virtual tokens of a task's prompt (``prefix_len``).
        bottleneck: width of the paper's residual network through which the prompt goes while it is trained; 0 trains
            the prompt itself. The official T5 code trains without (``prefix_MLP`` is None), and its ``MLP1`` of width
            800 stops with an error; the learning rate of 0.3 belongs to a prompt alone.
    """

    prompt_length: Annotated[int, Ge(1)] = 10
    bottleneck: Annotated[int, Ge(0), Hint("0 trains the prompt itself")] = 0


class TrainedPrompt(nn.Module):
    """What stands in the place of PEFT's embedding of virtual tokens while a task is learned: [P_k; P_k-1; ...; P_1].

    Args:
        new_ND: where the new task's prompt begins.
        earlier_MD: the earlier prompts, the newest first; not trained.
        bottleneck: P_k = p + MLP(p) with this width; 0: P_k = p.
    """

    def __init__(self, new_ND: Tensor, earlier_MD: Tensor, bottleneck: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(new_ND)
        self.register_buffer("earlier", earlier_MD, persistent=False)
        size = new_ND.shape[1]
        self.network = (
            nn.Sequential(nn.Linear(size, bottleneck), nn.Tanh(), nn.Linear(bottleneck, size)) if bottleneck else None
        )

    @property
    def weight(self) -> Tensor:
        """All prompts, [N + M, D]."""
        new_ND = self.prompt if self.network is None else self.prompt + self.network(self.prompt)
        return torch.cat([new_ND, cast(Tensor, self.earlier)])

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens by number."""
        return nn.functional.embedding(indices, self.weight)


class ProgressivePrompts(Method):
    """L = -log p(y | [P_k; ...; P_1; x]) over P_k alone.

    What is written is one prompt-tuning adapter whose virtual tokens are all prompts, so any tool that knows PEFT can
    load it; the next task takes its earlier prompts from it. The folder of task k is the paper's model for task k.
    """

    name = "progressive_prompts"
    paper = Paper(
        "Progressive Prompts: Continual Learning for Language Models",
        "Razdaibiedina et al., 2023",
        "https://arxiv.org/abs/2301.12314",
    )
    Settings = ProgressivePromptsSettings
    training_defaults = TrainingDefaults(
        learning_rate=0.3, lr_scheduler_type="constant", reason="official T5 code's README and train_t5_cl.py"
    )
    adapters = True
    weight_access = "whole"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        model: Any = context.model
        size = model.get_input_embeddings().weight.shape[1]
        earlier_MD = torch.zeros(0, size, device=model.device)
        if self.goes_on_from(model):
            earlier_MD = model.prompt_encoder[ADAPTER].embedding.weight.detach().clone()
            model = model.get_base_model()
        total = settings.prompt_length + len(earlier_MD)
        config = PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=total, prompt_tuning_init="SAMPLE_VOCAB", token_dim=size
        )
        context.model = attach(model, config, context.seed, "method.prompt_length")
        name_base(config, model)
        drawn_ND = self._encoder.embedding.weight.detach()[: settings.prompt_length].clone()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            trained = TrainedPrompt(drawn_ND, earlier_MD, settings.bottleneck)
        self._encoder.embedding = trained.to(model.device)
        # PEFT would count left padding as distance between the prompts and the text.
        context.layout = replace(context.layout, side="right")

    @classmethod
    def virtual_tokens(cls, settings: ProgressivePromptsSettings, model: PreTrainedModel, tasks: int) -> int:
        """A prompt a task."""
        return settings.prompt_length * tasks

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a model comes with one prompt of virtual tokens, as this method writes."""
        kinds = [config.peft_type for config in getattr(model, "peft_config", {}).values()]
        return kinds == ["PROMPT_TUNING"] and not getattr(model, "query_conditioned", False)

    @property
    def _encoder(self) -> Any:
        return cast(Any, self.context.model).prompt_encoder[ADAPTER]

    def finished_model(self) -> PreTrainedModel:
        """The model with all prompts as one adapter, whose network is no longer needed."""
        cast(Any, self.context.model).disable_input_require_grads()
        self._encoder.embedding = nn.Embedding.from_pretrained(self._encoder.embedding.weight.detach(), freeze=False)
        return self.context.model

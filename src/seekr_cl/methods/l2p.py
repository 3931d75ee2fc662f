"""L2P: a pool of prompts, of which each question picks those whose keys are nearest; the model itself stays as it is.

Shapes: B batch, L padded length, D the model's width, M prompts in the pool, N prompts picked, P tokens of a prompt.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from peft import PromptTuningConfig
from transformers import PreTrainedModel

from seekr_cl.errors import ConfigError
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, run, task_term
from seekr_cl.methods.common.lora import attach, name_base
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.prompt_pool import QUERIES, PromptKeys, PromptPoolModel
from seekr_cl.settings import Ge, Hint, OneOf, Settings


@dataclass(frozen=True, kw_only=True)
class L2PSettings(Settings):
    """Settings of L2P; the numbers are the paper's for Split CIFAR-100 (section 5.1); its code picks 4 prompts, not 5.

    Attributes:
        pool_size: prompts in the pool (M).
        prompt_length: virtual tokens of a prompt (L_p).
        top: prompts picked for a question (N).
        pull: weight of the keys' distance from the questions that picked them (lambda).
        query: what a question is compared by: the mean of its tokens' ``embeddings``, as in TRACE's code for language
            models, or of the frozen model's last ``hidden`` states, which is the paper's q(x) and costs a forward pass.
    """

    pool_size: Annotated[int, Ge(1)] = 10
    prompt_length: Annotated[int, Ge(1)] = 5
    top: Annotated[int, Ge(1)] = 5
    pull: Annotated[float, Ge(0), Hint("0 leaves the keys where they began")] = 0.5
    query: Annotated[str, OneOf(QUERIES)] = "embeddings"

    def check(self) -> None:
        """A question picks each prompt once."""
        if self.top > self.pool_size:
            raise ConfigError(f"method.top: {self.top} is more than the pool holds; at most {self.pool_size}")


class L2P(Method):
    """L = -log p(y | [P_s1; ...; P_sN; x]) + lambda sum_i (1 - cos(q(x), k_si)) over the pool and its keys (eq. 5).

    Every question picks its own prompts, in training, in evaluation and in the next task. The question is what stands
    before the answer: TRACE's code takes the mean over the answer too, which nobody has at test time. Prompts begin as
    tokens of the vocabulary and keys as the mean of their prompt (TRACE's code). The paper's penalty on prompts that
    earlier tasks used much is optional there and absent here. The JAX code can pick one set of prompts for a batch
    (``batchwise_prompt``); here each question has its own, in training as in use.
    """

    name = "l2p"
    paper = Paper("Learning to Prompt for Continual Learning", "Wang et al., 2022", "https://arxiv.org/abs/2112.08654")
    Settings = L2PSettings
    training_defaults = TrainingDefaults(
        learning_rate=0.03, lr_scheduler_type="constant", reason="official code, for Split CIFAR-100"
    )
    last_turn_only = True
    adapters = True
    weight_access = "whole"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        model: Any = context.model
        if self.goes_on_from(model):
            for key in ("pool_size", "prompt_length"):
                if model.describe()[key] != getattr(settings, key):
                    raise ConfigError(
                        f"method.{key}: {getattr(settings, key)}, but the model comes with a pool of "
                        f"{key} {model.describe()[key]}; keep that, or begin with the base model"
                    )
            model.enable_input_require_grads()
            model.selector.top = settings.top
        else:
            total = settings.pool_size * settings.prompt_length
            config = PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=total,
                prompt_tuning_init="SAMPLE_VOCAB",
                token_dim=model.get_input_embeddings().weight.shape[1],
            )
            model = attach(model, config, context.seed, "method.pool_size", PromptPoolModel)
            name_base(config, model)
            pool_MPD = model.pool_XD.view(settings.pool_size, settings.prompt_length, -1)
            model.selector = PromptKeys(pool_MPD.mean(1), settings.top)
        model.query = settings.query
        # Without the pull nothing moves the keys, and processes would wait for their gradient.
        model.selector.requires_grad_(settings.pull > 0)
        context.model = model
        context.layout = replace(context.layout, side="right")

    @classmethod
    def virtual_tokens(cls, settings: L2PSettings, model: PreTrainedModel, tasks: int) -> int:
        """The picked prompts, in whichever task."""
        return settings.top * settings.prompt_length - (
            model.virtual_tokens if isinstance(model, PromptPoolModel) else 0
        )

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a model comes with a pool of prompts."""
        return isinstance(model, PromptPoolModel)

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss behind the picked prompts, and the distance of their keys."""
        seen = []

        def noted(model: Any, batch: Batch) -> Any:
            seen.append(run(model, batch))
            return seen[-1]

        terms = {"task": task_term(self.context, model, batch, noted)}
        if self.settings.pull:
            terms["pull"] = LossTerm(seen[-1].distance.mean(), self.settings.pull)
        return terms

    def finished_model(self) -> PreTrainedModel:
        """The model with its pool, keys and prompts as one adapter."""
        model: Any = self.context.model
        model.disable_input_require_grads()
        model.selector.requires_grad_(True)
        return model

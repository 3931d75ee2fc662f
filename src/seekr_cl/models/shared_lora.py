"""SAPT's model: the adapters of all tasks, mixed for each question by an attention over the tasks' keys.

Shapes: B batch, L padded length, D the model's width, T tasks so far.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.models.query_adapters import QueryAdapterModel, query_tokens, whole_number


class SharedAttention(nn.Module):
    """log softmax(k_t q / (temperature sqrt(D))) over the tasks' keys, with q = LayerNorm(SiLU(W_2 W_1 x)).

    Args:
        size: D.
        query_size: rows of W_1.
        temperature: of the scores.
    """

    def __init__(self, size: int, query_size: int, temperature: float) -> None:
        super().__init__()
        self.down = nn.Linear(size, query_size, bias=False)
        self.up = nn.Linear(query_size, size, bias=False)
        self.norm = nn.LayerNorm(size)
        self.keys = nn.ParameterList()
        self.temperature = temperature

    def add_key(self) -> None:
        """One more task's key, uniform in (-1, 1)."""
        self.keys.append(nn.Parameter(torch.empty(self.down.in_features).uniform_(-1, 1)))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Logarithms of the weights [B, T]."""
        query_BD = self.norm(F.silu(self.up(self.down(pooled_BD)))).float()
        score_BT = (query_BD[:, None] * torch.stack(list(self.keys))).sum(-1)
        return (score_BT / (self.temperature * math.sqrt(query_BD.shape[1]))).log_softmax(-1)


class SharedLoraModel(QueryAdapterModel):
    """W x + sum_t a_t(question) B_t A_t x with the adapters of all tasks."""

    method = "sapt"
    selector: SharedAttention
    _pooled_BD: Tensor | None = None
    _weight_BT: Tensor | None = None

    def describe(self) -> dict[str, Any]:
        """Sizes of the attention."""
        attention = self.selector
        return {
            "query_size": attention.down.out_features,
            "temperature": attention.temperature,
            "tasks": len(attention.keys),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """The attention over as many keys as there are adapters."""
        temperature = content.get("temperature")
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}, not a number above 0")
        if content.get("tasks") != len(self.peft_config):
            raise ValueError(f"seekr_method.json tells of {content.get('tasks')} tasks, not {len(self.peft_config)}")
        self.make_selector(whole_number(content, "query_size"), temperature)

    def make_selector(self, query_size: int, temperature: float) -> None:
        """A new attention with a key for each adapter."""
        size = self.plain.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            self.selector = SharedAttention(size, query_size, float(temperature))
            for _ in self.peft_config:
                self.selector.add_key()
        self.weigh_adapters()

    def weigh_adapters(self) -> None:
        """Has the output of every adapter multiplied by its task's weight."""
        for module in self.plain.modules():
            if isinstance(module, LoraLayer):
                for number, name in enumerate(self.peft_config):
                    up = dict(module.lora_B.items()).get(name)
                    if up is not None and not up._forward_hooks:
                        up.register_forward_hook(partial(self._weigh, number))

    def _weigh(self, number: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Under reentrant checkpointing a layer's backward pass must find the attention's own graph in it.
        weight_BT = self.selector(self._pooled_BD).exp() if self._weight_BT is None else self._weight_BT
        weight_B = weight_BT[:, number].to(output.dtype).repeat_interleave(len(output) // len(weight_BT))
        return output * weight_B.view(-1, *[1] * (output.dim() - 1))

    def ask(self, input_ids: Tensor, attention_mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
        """What the next passes are about: the largest of the question's embeddings at each place, [B, D]."""
        asked_BL = query_tokens(input_ids, attention_mask, query_mask)
        self._pooled_BD = self.embed(input_ids).masked_fill(~asked_BL[..., None], -torch.inf).amax(1)
        alone = self.training and _reentrant(self.plain)
        if alone and collectives.world_size() > 1:
            raise ConfigError(
                "gradient_checkpointing_kwargs: sapt uses its attention in every layer, whose gradients several "
                "processes cannot average under reentrant checkpointing; set use_reentrant: false"
            )
        self._weight_BT = None if alone else self.selector(self._pooled_BD).exp()
        return self._pooled_BD

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        attention_only: bool = False,
        **more: Any,
    ) -> Any:
        """PEFT's arguments; with ``attention_only`` the logarithms of the tasks' weights [B, T] and nothing else."""
        pooled_BD = self.ask(input_ids, attention_mask, query_mask)
        if attention_only:
            return self.selector(pooled_BD)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """The base model's ``generate``; the whole prompt is the question, also for what follows it."""
        self.ask(input_ids, attention_mask, None)
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **more)


def _reentrant(model: nn.Module) -> bool:
    """Whether layers are checkpointed in the way that runs a backward pass within the backward pass."""
    checkpointed = (part for part in model.modules() if getattr(part, "gradient_checkpointing", False))
    calls = (getattr(part, "_gradient_checkpointing_func", None) for part in checkpointed)
    return any(getattr(call, "keywords", {}).get("use_reentrant", True) for call in calls if call is not None)

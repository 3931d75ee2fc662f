"""L2P's model: the frozen base model behind the prompts that each query picks from a pool.

Shapes: B batch, L padded length, D the model's width, M prompts in the pool, N prompts picked, P tokens of a prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast

from seekr_cl.models.positions import counts_from_the_edge, positions
from seekr_cl.models.prompts import behind_prompts
from seekr_cl.models.query_adapters import ADAPTER, QueryAdapterModel, query_tokens, whole_number
from seekr_cl.tasks.collate import IGNORE

QUERIES = ("embeddings", "hidden")


class PromptKeys(nn.Module):
    """The pool's keys.

    Args:
        keys_MD: where they begin.
        top: how many a query picks.
    """

    def __init__(self, keys_MD: Tensor, top: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys_MD.detach().clone().float())
        self.top = top

    def forward(self, query_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers [B, N] of the nearest prompts, the nearest first, and their cosine distances [B, N] (eq. 3)."""
        distance_BM = 1 - F.cosine_similarity(query_BD[:, None].float(), self.keys, dim=-1)
        distance_BN, chosen_BN = distance_BM.topk(self.top, dim=1, largest=False)
        return chosen_BN, distance_BN


@dataclass
class PromptedOutput(CausalLMOutputWithPast):
    """A model's output behind the prompts that its questions picked.

    Attributes:
        distance: [B], the sum of the cosine distances of the picked keys.
    """

    distance: Tensor | None = None


class PromptPoolModel(QueryAdapterModel):
    """The frozen model behind [P_s1; ...; P_sN; x], where s are the prompts picked for x (eq. 4)."""

    method = "l2p"
    selector: PromptKeys
    query: str = QUERIES[0]

    def describe(self) -> dict[str, Any]:
        """Sizes of pool and prompts, and how a question is compared."""
        pool_size = len(self.selector.keys)
        return {
            "pool_size": pool_size,
            "prompt_length": len(self.pool_XD) // pool_size,
            "top": self.selector.top,
            "query": self.query,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Keys for the pool that was loaded."""
        pool_size, length, top = (whole_number(content, key) for key in ("pool_size", "prompt_length", "top"))
        if top > pool_size or pool_size * length != len(self.pool_XD) or content.get("query") not in QUERIES:
            raise ValueError(f"seekr_method.json tells of another pool than {len(self.pool_XD)} virtual tokens")
        self.query = content["query"]
        self.selector = PromptKeys(torch.zeros(pool_size, self.pool_XD.shape[1]), top)
        self.prompt_encoder.requires_grad_(True)

    @property
    def pool_XD(self) -> Tensor:  # noqa: N802
        """All prompts behind one another, [M P, D]."""
        encoder: Any = self.prompt_encoder[ADAPTER]
        return encoder.embedding.weight

    @property
    def virtual_tokens(self) -> int:
        """How many stand before a text."""
        return self.selector.top * (len(self.pool_XD) // len(self.selector.keys))

    def pick(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, query_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prompts [B, N P, D] that the questions pick, the nearest first, and their distances [B]."""
        asked_BL = query_tokens(input_ids, attention_mask, query_mask)
        each_BLD = self.embed(input_ids) if self.query == "embeddings" else self._hidden(input_ids, attention_mask)
        query_BD = (each_BLD * asked_BL[..., None]).sum(1) / asked_BL.sum(1, keepdim=True)
        chosen_BN, distance_BN = self.selector(query_BD)
        pool_MPD = self.pool_XD.view(len(self.selector.keys), -1, self.pool_XD.shape[1])
        return pool_MPD[chosen_BN].flatten(1, 2), distance_BN.sum(1)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        body = self.plain.base_model
        training = body.training
        body.eval()
        try:
            with torch.no_grad():
                place = self._places(attention_mask)
                return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **place)[0].float()
        finally:
            body.train(training)

    def _places(self, mask_BL: Tensor | None) -> dict[str, Tensor]:
        """Positions among the real tokens alone, for a model that counts padding on the left or in between as well."""
        if mask_BL is None or not counts_from_the_edge(self.plain):
            return {}
        return {"position_ids": positions(mask_BL)}

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        query_mask: Tensor | None = None,
        **more: Any,
    ) -> PromptedOutput:
        """PEFT's arguments; logits [B, N P + L, V] include the prompts' places."""
        prompt_BXD, distance_B = self.pick(input_ids, attention_mask, query_mask)
        text_BLD = self.plain.get_input_embeddings()(input_ids)
        embeds_BXD = torch.cat([prompt_BXD.to(text_BLD.dtype), text_BLD], dim=1)
        real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        before_BX = real_BL.new_ones(prompt_BXD.shape[:2])
        if labels is not None:
            labels = torch.cat([before_BX * IGNORE, labels], dim=1)
        mask_BX = torch.cat([before_BX, real_BL], dim=1)
        more.pop("position_ids", None)  # those of the text alone
        more |= self._places(mask_BX)
        out = self.plain(inputs_embeds=embeds_BXD, attention_mask=mask_BX, labels=labels, **more)
        return PromptedOutput(**out, distance=distance_B)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Tensor:
        """The base model's ``generate`` behind the picked prompts, for texts padded on the left: [B, L + new]."""
        # The base model counts the prompts and shows criteria the new tokens alone.
        if more.get("max_length") is not None:
            more["max_new_tokens"] = more.pop("max_length") - input_ids.shape[1]
        if more.get("stopping_criteria"):
            more["stopping_criteria"] = StoppingCriteriaList(
                [_Behind(input_ids, one) for one in more["stopping_criteria"]]
            )
        real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with torch.no_grad():
            prompt_BXD, _ = self.pick(input_ids, real_BL)
            text_BLD = self.plain.get_input_embeddings()(input_ids)
            embeds_BXD, mask_BX = behind_prompts(text_BLD, real_BL, prompt_BXD)
        settings, self.plain.generation_config = self.plain.generation_config, self.generation_config
        try:
            new_BL = self.plain.generate(inputs_embeds=embeds_BXD, attention_mask=mask_BX, **more)
        finally:
            self.plain.generation_config = settings
        return torch.cat([input_ids, new_BL], dim=1)


class _Behind(StoppingCriteria):
    """A criterion that sees new tokens behind the text they go on from, as without prompts."""

    def __init__(self, text_BL: Tensor, criterion: StoppingCriteria) -> None:
        self.text_BL, self.criterion = text_BL, criterion

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Any:
        return self.criterion(torch.cat([self.text_BL, input_ids], dim=1), scores, **more)

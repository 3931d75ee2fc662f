"""lm-evaluation-harness's model for what chooses its adapters by the query, and for prompts.

Shapes: B batch, L padded length, V vocabulary.
"""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from transformers import GenerationConfig

from seekr_cl.evaluation.decoding import after_prompt

Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts, tokens of the context, tokens of what may follow it."""


class QueryAdapterLM(HFLM):
    """Tells the model which tokens of a text are the question: the context, shots and all, without what may follow it.

    The harness hands context and continuation to a model as one text, padded with zeros that nothing marks.
    """

    def __init__(self, **more: Any) -> None:
        # Its cache joins requests whose texts are alike and whose contexts need not be.
        super().__init__(logits_cache=False, **more)
        self._asked: list[Request] = []

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The harness's own, a batch at a time, so that it is known whose rows a batch has."""
        # Its order of requests, so that rows come as they are given; rows are checked all the same.
        order = sorted(range(len(requests)), key=lambda place: _longest_first(requests[place]))
        found: dict[int, tuple[float, bool]] = {}
        size = override_bs or int(self.batch_size)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            self._asked = [requests[place] for place in places]
            answers = super()._loglikelihood_tokens(self._asked, disable_tqdm=True, override_bs=len(places))
            found.update(zip(places, answers, strict=True))
        return [found[place] for place in range(len(requests))]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] of a batch of the requests at hand."""
        real_BL, query_BL = torch.zeros_like(inps), torch.zeros_like(inps)
        for row, (_, context, continuation) in enumerate(self._asked):
            text = (context + continuation)[-(self.max_length + 1) :][:-1]
            if inps[row, : len(text)].tolist() != text:
                raise ValueError("the harness made another batch of its requests; use the version that is pinned")
            real_BL[row, : len(text)] = 1
            query_BL[row, : len(text) - len(continuation) + 1] = 1
        with torch.no_grad():
            logits = self.model(input_ids=inps, attention_mask=real_BL, query_mask=query_BL).logits
        return logits[:, -inps.shape[1] :]


class PromptLM(HFLM):
    """Has virtual tokens stand right before each text, as ``generate_answers`` does; PEFT has padding between."""

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Texts and greedy answers [B, L + new]; none of the benchmarks samples."""
        mask_BL = torch.ones_like(context) if attention_mask is None else attention_mask
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_length - context.shape[1],
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.eot_token_id,
            use_cache=True,
        )
        # From embeddings only new tokens are seen by whoever looks for the stop.
        criteria = stop_sequences_criteria(self.tokenizer, stop, 0, len(context))
        with torch.no_grad():
            new_BL = after_prompt(
                self.model, context, mask_BL, {"generation_config": greedy, "stopping_criteria": criteria}
            )
        return torch.cat([context, new_BL], dim=1)


def _longest_first(request: Request) -> tuple[int, tuple[int, ...]]:
    _, context, continuation = request
    return -len(context) - len(continuation), tuple(context + continuation)

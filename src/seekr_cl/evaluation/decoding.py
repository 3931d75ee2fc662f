"""One batch of prompts and what a model goes on with: a shared beginning once, rows that have ended let go.

Both need a cache of keys and values alone, in which places are free: a model that is told its positions and whose
layers all attend to everything. Others go through ``model.generate`` as they are.

Shapes: B batch, L padded length.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from seekr_cl.models.prompts import behind_prompts

_FEWEST = 4
"""Of fewer rows none is let go: choosing the others' keys costs as much as it saves."""


class Watch(LogitsProcessor, ABC):
    """Looks at each step's scores (B, V) and says which rows it has marked; the scores stay as they are."""

    @abstractmethod
    def rows(self) -> list[int]:
        """Numbers of the rows in the batch."""


class Decoder:
    """Goes on with batches of prompts; used under ``torch.inference_mode`` or ``torch.no_grad``, one and the same.

    Args:
        model: in evaluation mode, its own generation settings out of the way.
        settings: of the generation; ``max_new_tokens`` may be changed between batches.
        prefix: tokens that batches may begin with; they are computed once.
    """

    def __init__(self, model: PreTrainedModel, settings: GenerationConfig, prefix: Sequence[int] = ()) -> None:
        self.model, self.settings = model, settings
        self._plain = caches_plainly(model)
        self._prefix = list(prefix) if self._plain else []
        self._shared: DynamicCache | None = None

    def go_on(
        self, batch: Sequence[Sequence[int]], watch: Callable[[], Watch] | None = None, shared: bool = False
    ) -> tuple[list[list[int]], set[int]]:
        """The new tokens of each row, to its end, and the rows that a watch has marked.

        Args:
            batch: prompts, at least one token each.
            watch: makes what looks on; a batch whose rows are let go needs several.
            shared: whether every row begins with the prefix and has a token more.
        """
        begin = self._prefix if shared else []
        width = max(map(len, batch))
        ids_BL = torch.full((len(batch), width), int(self.settings.pad_token_id))
        mask_BL = torch.zeros_like(ids_BL)
        for row, prompt in enumerate(batch):
            # The padding stands between the shared beginning and what is a row's own.
            own = width - len(prompt) + len(begin)
            ids_BL[row, : len(begin)], ids_BL[row, own:] = torch.tensor(begin), torch.tensor(list(prompt[len(begin) :]))
            mask_BL[row, : len(begin)] = mask_BL[row, own:] = 1
        ids_BL, mask_BL = ids_BL.to(self.model.device), mask_BL.to(self.model.device)
        if has_prompt(self.model):
            seen = watch() if watch else None
            asked = {
                "generation_config": self.settings,
                "logits_processor": LogitsProcessorList([seen] if seen else []),
            }
            new_BL = after_prompt(self.model, ids_BL, mask_BL, asked)
            return [self._to_end(new) for new in new_BL.tolist()], set(seen.rows() if seen else ())
        return self._segments(ids_BL, mask_BL, watch, self._cache(begin, len(batch)))

    def _segments(
        self, ids_BL: Tensor, mask_BL: Tensor, watch: Callable[[], Watch] | None, cache: DynamicCache | None
    ) -> tuple[list[list[int]], set[int]]:
        """Generates until half of the rows have ended, goes on with the others, and so forth."""
        width, room = ids_BL.shape[1], int(self.settings.max_new_tokens or 0)
        new: list[list[int]] = [[] for _ in ids_BL]
        marked: set[int] = set()
        rows = list(range(len(ids_BL)))
        while rows:
            seen = watch() if watch else None
            many = self._plain and len(rows) >= _FEWEST
            out = self.model.generate(  # type: ignore[operator]
                input_ids=ids_BL,
                attention_mask=mask_BL,
                generation_config=self._asked(room - (ids_BL.shape[1] - width)),
                logits_processor=LogitsProcessorList([seen] if seen else []),
                stopping_criteria=StoppingCriteriaList([_HalfEnded(self._ends, len(rows))] if many else []),
                **({} if cache is None else {"past_key_values": cache}),
            )
            ids_BL, cache = (out.sequences, out.past_key_values) if self._plain else (out, None)
            if seen is not None:
                marked |= {rows[row] for row in seen.rows()}
            places = []
            for place, (row, tokens) in enumerate(zip(rows, ids_BL[:, width:].tolist())):
                new[row] = self._to_end(tokens)
                if len(new[row]) == len(tokens) < room and tokens[-1] not in self._ends:
                    places.append(place)
            rows = [rows[place] for place in places]
            if rows and cache is not None:
                kept = torch.tensor(places, device=ids_BL.device)
                cache.batch_select_indices(kept)
                more_BL = mask_BL.new_ones((len(mask_BL), ids_BL.shape[1] - mask_BL.shape[1]))
                ids_BL, mask_BL = ids_BL[kept], torch.cat([mask_BL, more_BL], 1)[kept]
        return new, marked

    @property
    def _ends(self) -> list[int]:
        ends = self.settings.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

    def _to_end(self, tokens: list[int]) -> list[int]:
        """New tokens up to the first end, which is the last of them."""
        end = next((at for at, one in enumerate(tokens, 1) if one in self._ends), len(tokens))
        return tokens[:end]

    def _asked(self, room: int) -> GenerationConfig:
        settings = copy.copy(self.settings)
        settings.max_new_tokens = room
        settings.return_dict_in_generate = self._plain
        return settings

    def _cache(self, begin: list[int], rows: int) -> DynamicCache | None:
        """The keys and values of the shared beginning, for so many rows."""
        if not begin:
            return None
        if self._shared is None:
            ids_1L = torch.tensor([begin], device=self.model.device)
            keep = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(self.model) else {}
            cache = DynamicCache(config=self.model.config)
            self._shared = self.model(input_ids=ids_1L, past_key_values=cache, use_cache=True, **keep).past_key_values
        cache = copy.deepcopy(self._shared)
        cache.batch_repeat_interleave(rows)
        return cache


def caches_plainly(model: Any) -> bool:
    """Whether keys and values are all that a model's cache holds, and positions are told and not counted."""
    if has_prompt(model) or getattr(model, "query_conditioned", False) or hasattr(model, "ask"):
        return False
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return False
    if not {"position_ids", "past_key_values"} <= _arguments(model) or getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _arguments(model: Any) -> set[str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)


class _HalfEnded(StoppingCriteria):
    """Stops everything once half of the rows, and not yet all, have come to an end."""

    def __init__(self, ends: Sequence[int], rows: int) -> None:
        self._ends, self._rows = list(ends), rows
        self._ended_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """True for every row, or for none."""
        ends_E = torch.tensor(self._ends, device=input_ids.device)
        last_B = torch.isin(input_ids[:, -1], ends_E)
        self._ended_B = last_B if self._ended_B is None else self._ended_B | last_B
        return (self._ended_B.sum() * 2 >= self._rows).expand(len(input_ids))


def has_prompt(model: Any) -> bool:
    """Whether the same virtual tokens, learned by PEFT, stand before every sequence."""
    kinds = [config.peft_type for config in getattr(model, "peft_config", {}).values()]
    return "PROMPT_TUNING" in kinds and not getattr(model, "query_conditioned", False)


def after_prompt(model: Any, ids_BL: Tensor, mask_BL: Tensor, asked: dict[str, Any]) -> Tensor:
    """New tokens [B, new] of a model that ``has_prompt``, for texts padded on the left.

    Args:
        model: PEFT's.
        ids_BL: the texts.
        mask_BL: which tokens are real.
        asked: of the base model's ``generate``, ``generation_config`` among it.
    """
    base = model.get_base_model()
    text_BLD = base.get_input_embeddings()(ids_BL)
    embeds_BLD, mask_BL = behind_prompts(text_BLD, mask_BL, model.get_prompt(batch_size=len(ids_BL)))
    settings, base.generation_config = base.generation_config, asked["generation_config"]
    try:
        return base.generate(inputs_embeds=embeds_BLD, attention_mask=mask_BL, **asked)
    finally:
        base.generation_config = settings

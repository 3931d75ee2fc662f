"""Greedy answers in batches: padded on the left, sorted by length, the same for any batch size.

A batch's shape decides in which order a matrix product is summed up, so logits differ in their last digits, and where
two tokens are nearly alike the likelier one may change. Every step's two best logits are therefore compared: an answer
with a step closer than ``NEAR`` is generated again by itself, as with batch size 1. All others cannot have changed.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.errors import ModelError
from seekr_cl.evaluation.batches import BATCH_TOKENS, cut_batches, shared_batches
from seekr_cl.evaluation.decoding import Decoder, Watch, caches_plainly
from seekr_cl.evaluation.speed import Speed
from seekr_cl.system.out_of_memory import SmallerBatchWarning, is_out_of_memory, let_go
from seekr_cl.tasks.chat_reading import turn_ends

NEAR = 1e-4
"""Two logits so close, relative to the larger (at least 1), are decided by a batch of one. Ten times the
largest difference that another batch made to a float32 logit of the models in docs/evaluation.md."""


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_answers: Callable[[Sequence[int], Sequence[str]], None] | None = None,
    keep_markers: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    speed: Speed | None = None,
    on_less: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's answer to each prompt, in the prompts' order.

    Args:
        model: any causal language model; its training mode and generation settings are left as they were.
        tokenizer: its end-of-text token stops an answer, and so does every end of a turn that the model's generation
            settings or the chat template know; it also pads where no padding token is set.
        prompts: token ids; the caller has made room for the answer.
        max_new_tokens: longest answer.
        batch_size: the most prompts at a time.
        on_batch: called with the number of prompts done since the last call.
        on_answers: called with their numbers and answers.
        keep_markers: leave special tokens in the texts, except the end.
        batch_tokens: the most tokens at a time, padded prompts and new ones together.
        speed: told what was generated.
        on_less: called with the tokens at a time that are left, once a batch has not fitted into memory; default a
            warning.

    Returns:
        Texts, by default without special tokens.

    Raises:
        ModelError: if memory is too small for a prompt by itself.
    """
    answers = [""] * len(prompts)
    training, own = model.training, model.generation_config
    eos, ends = tokenizer.eos_token_id, stop_ids(tokenizer, own)
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # A model needs one token to start from, even where prompt and tokenizer give none.
    asked = [list(prompt) or [eos] for prompt in prompts]
    # Not a copy of the model's own settings: a repetition penalty among them would be neither greedy nor, since it also
    # counts the padding, the same for any batch size.
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=ends, use_cache=True
    )
    speed = Speed() if speed is None else speed
    prefix, batches = shared_batches(asked, max_new_tokens, batch_tokens, batch_size, caches_plainly(model))
    model.eval()
    model.generation_config = greedy
    try:
        decoder = Decoder(model, greedy, prefix)
        while batches:
            indices, shared = batches[0]
            batch = [asked[index] for index in indices]
            try:
                with speed.timing(), torch.inference_mode():
                    new = _answer(decoder, batch, ends, shared)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ModelError(
                        f"a prompt of {len(batch[0])} tokens and {max_new_tokens} new ones do not fit into memory; set "
                        "a smaller max_length or max_new_tokens, or load the model in half precision"
                    ) from error
                new = None
            if new is None:
                let_go()
                batch_tokens = len(batch) * (max(map(len, batch)) + max_new_tokens) // 2
                batches = cut_batches(batches, list(map(len, asked)), max_new_tokens, batch_tokens)
                (on_less or warn_of_less)(batch_tokens)
                continue
            batches = batches[1:]
            speed.new_tokens += sum(map(len, new))
            texts = answer_texts(tokenizer, new, ends, keep_markers)
            for index, text in zip(indices, texts):
                answers[index] = text
            if on_answers is not None:
                on_answers(indices, texts)
            if on_batch is not None:
                on_batch(len(indices))
    finally:
        model.generation_config = own
        if training:
            model.train()
    return answers


def warn_of_less(batch_tokens: int) -> None:
    """Says that a batch did not fit, and how many tokens at a time it goes on with."""
    warnings.warn(
        f"evaluation: a batch did not fit into memory, going on with {batch_tokens} tokens at a time, less if need be; "
        f"set evaluation.batch_tokens={batch_tokens}",
        SmallerBatchWarning,
        stacklevel=3,
    )


def _answer(decoder: Decoder, batch: list[list[int]], ends: Sequence[int], shared: bool) -> list[list[int]]:
    """New tokens of a batch; what another batch might have decided otherwise is decided by a row alone."""
    alone = len(batch) == 1 and not shared
    watched = not alone and decides_alone(decoder.model)
    new, near = decoder.go_on(batch, (lambda: _NearTies(ends)) if watched else None, shared)
    for row in sorted(near):
        new[row] = decoder.go_on([batch[row]])[0][0]
    return new


def answer_texts(
    tokenizer: PreTrainedTokenizerBase,
    written: Sequence[Sequence[int]],
    ends: Sequence[int] = (),
    keep_markers: bool = False,
) -> list[str]:
    """What new tokens say up to the first end of text or turn, by default without special tokens."""
    ends = ends or [tokenizer.eos_token_id]
    # Cut by number: not every tokenizer counts its end-of-text token among the special ones it leaves out.
    ended = [list(itertools.takewhile(lambda one: one not in ends, ids)) for ids in written]
    return tokenizer.batch_decode(ended, skip_special_tokens=not keep_markers)


def stop_ids(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> list[int]:
    """The tokens at which an answer ends: the tokenizer's end of text, then the others.

    Args:
        tokenizer: with its chat template, whose turns may end with a token of their own.
        settings: the model's generation settings; chat models are published with the ends of their turns there.
    """
    own = getattr(settings, "eos_token_id", None)
    more = [own] if isinstance(own, int) else list(own or [])
    found = [tokenizer.eos_token_id, *more, *turn_ends(tokenizer)]
    return list(dict.fromkeys(int(one) for one in found if one is not None))


def decides_alone(model: PreTrainedModel) -> bool:
    """Whether near ties are decided by a batch of one: in float32; in half precision nearly every answer has one."""
    return model.dtype in (torch.float32, torch.float64)


class _NearTies(Watch):
    """Notes which rows had a step that was nearly undecided before they ended; changes nothing."""

    def __init__(self, ends: int | Sequence[int]) -> None:
        self._ends = [ends] if isinstance(ends, int) else list(ends)
        self._near_B: Tensor | None = None
        self._ended_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) as they came."""
        best_B2 = scores.topk(2, dim=-1).values
        near_B = best_B2[:, 0] - best_B2[:, 1] <= NEAR * best_B2[:, 0].abs().clamp_min(1)
        if self._near_B is None or self._ended_B is None:
            # Of the first step the last token is the prompt's, whatever it is.
            self._near_B, self._ended_B = near_B, torch.zeros_like(near_B)
        else:
            ends_E = torch.tensor(self._ends, device=input_ids.device)
            self._ended_B = self._ended_B | torch.isin(input_ids[:, -1], ends_E)
            self._near_B = self._near_B | (near_B & ~self._ended_B)
        return scores

    def rows(self) -> list[int]:
        """The rows that must be decided alone."""
        return [] if self._near_B is None else self._near_B.nonzero().flatten().tolist()

"""Greedy answers in batches: padded on the left, sorted by length, the same for any batch size."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl import ranks


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's answer to each prompt, in the prompts' order.

    Args:
        model: any causal language model; its training mode and generation settings are left as they were.
        tokenizer: the end-of-text token stops an answer; it also pads where no padding token is set.
        prompts: token ids; the caller has made room for the answer.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        on_batch: called with the number of prompts done since the last call.

    Returns:
        Texts without special tokens.
    """
    eos = tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    mine: dict[int, str] = {}
    # Longest first: a batch that does not fit into memory fails at once and not after an hour.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    training, settings = model.training, model.generation_config
    # Not a copy of the model's own settings: a repetition penalty among them would be neither greedy nor, since it also
    # counts the padding, the same for any batch size.
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=eos, use_cache=True
    )
    model.eval()
    model.generation_config = greedy
    try:
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        for number, counts in ranks.turns(len(batches)):
            indices = batches[number]
            width = max(1, max(len(prompts[index]) for index in indices))
            ids_BL = torch.full((len(indices), width), pad)
            mask_BL = torch.zeros_like(ids_BL)
            for row, index in enumerate(indices):
                # A model needs one token to start from, even where prompt and tokenizer give none.
                prompt = list(prompts[index]) or [eos]
                ids_BL[row, width - len(prompt) :] = torch.tensor(prompt)
                mask_BL[row, width - len(prompt) :] = 1
            with torch.inference_mode():
                out_BL = model.generate(  # type: ignore[operator]
                    input_ids=ids_BL.to(model.device), attention_mask=mask_BL.to(model.device), generation_config=greedy
                )
            # Cut by number: not every tokenizer counts its end-of-text token among the special ones it leaves out.
            ended = [new[: new.index(eos)] if eos in new else new for new in out_BL[:, width:].tolist()]
            if counts:
                mine |= dict(zip(indices, tokenizer.batch_decode(ended, skip_special_tokens=True)))
            if on_batch is not None:
                on_batch(sum(map(len, batches[number - ranks.own() :][: ranks.count()])))
    finally:
        model.generation_config = settings
        model.train(training)
    # JSON turns the keys into text, so they go as pairs.
    answers = {index: text for part in ranks.of_all(list(mine.items())) for index, text in part}
    return [answers[index] for index in range(len(prompts))]

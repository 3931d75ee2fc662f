"""What a model writes for a method: sampled text as token ids, the same every time for the same model and seed."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from seekr_cl.evaluation.batches import BATCH_TOKENS, shared_batches
from seekr_cl.evaluation.decoding import Decoder, caches_plainly
from seekr_cl.models.context import context_length


@torch.no_grad()
def write(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos_id: int | Sequence[int],
    pad_id: int,
    seed: int,
    top_k: int = 0,
    temperature: float = 1.0,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """What the model goes on with after each prompt.

    The generators of all devices are put back afterwards, so that writing disturbs no other draw.

    Args:
        model: in evaluation mode or not; it is left as it was.
        prompts: token ids, at least one each.
        max_new_tokens: where a text is broken off, if the model's context does not end before.
        eos_id: token that ends a text, or all that do.
        pad_id: token in the padding.
        seed: of the draws.
        top_k: tokens that may be drawn at each place; 0 is all.
        temperature: of the draws; 0 takes the likeliest token.
        advance: told after each batch how many texts are done.

    Returns:
        The new tokens of each text, in the prompts' order: none where a prompt fills the context, and one of
        ``eos_id`` last where the model ended it.
    """
    ends = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    draws = {"do_sample": True, "top_k": top_k, "temperature": temperature} if temperature else {"do_sample": False}
    settings = GenerationConfig(eos_token_id=ends, pad_token_id=pad_id, use_cache=True, num_beams=1, **draws)
    context = context_length(model)
    # Beside a longer one, a prompt near the context's end would have less of the context left.
    late = [place for place, ids in enumerate(prompts) if context is not None and len(ids) + max_new_tokens > context]
    early = sorted(set(range(len(prompts))) - set(late))
    some = [prompts[place] for place in early]
    prefix, batches = shared_batches(some, max_new_tokens, BATCH_TOKENS, sharing=caches_plainly(model))
    batches = [*(([early[at] for at in batch], shared) for batch, shared in batches), *(([at], False) for at in late)]
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = settings
    devices = [model.device] if model.device.type == "cuda" else []
    written: list[list[int]] = [[] for _ in prompts]
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed % (1 << 63))
            decoder = Decoder(model, settings, prefix)
            for places, shared in batches:
                width = max(len(prompts[place]) for place in places)
                settings.max_new_tokens = max_new_tokens if context is None else min(max_new_tokens, context - width)
                if settings.max_new_tokens < 1:
                    continue
                new, _ = decoder.go_on([prompts[place] for place in places], shared=shared)
                for place, one in zip(places, new):
                    written[place] = one
                advance(len(places))
    finally:
        model.generation_config = own
        model.train(training)
    return written

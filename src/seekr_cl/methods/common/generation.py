"""What a model writes for a method: sampled text as token ids, the same every time for the same model and seed.

Shapes: B batch, L padded length.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from seekr_cl.models.context import context_length

BATCH = 16
"""Texts written at a time."""


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
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = settings
    devices = [model.device] if model.device.type == "cuda" else []
    written: list[list[int]] = [[] for _ in prompts]
    # Alike lengths together: a short prompt beside a long one would have less of the context left.
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed % (1 << 63))
            for start in range(0, len(order), BATCH):
                places = order[start : start + BATCH]
                some = [prompts[place] for place in places]
                width = max(map(len, some))
                settings.max_new_tokens = max_new_tokens if context is None else min(max_new_tokens, context - width)
                if settings.max_new_tokens < 1:
                    continue
                ids_BL = torch.full((len(some), width), pad_id)
                mask_BL = torch.zeros_like(ids_BL)
                for row, ids in enumerate(some):
                    ids_BL[row, width - len(ids) :] = torch.tensor(list(ids))
                    mask_BL[row, width - len(ids) :] = 1
                out_BL = model.generate(  # type: ignore[operator]
                    input_ids=ids_BL.to(model.device),
                    attention_mask=mask_BL.to(model.device),
                    generation_config=settings,
                )
                for place, new in zip(places, out_BL[:, width:].tolist()):
                    end = next((at for at, one in enumerate(new, 1) if one in ends), len(new))
                    written[place] = new[:end]
                advance(len(some))
    finally:
        model.generation_config = own
        model.train(training)
    return written

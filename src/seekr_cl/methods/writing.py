"""What a model writes for a method: sampled text as token ids, the same every time for the same model and seed.

Shapes: B batch, L padded length.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

BATCH = 16
"""Texts written at a time."""


@torch.no_grad()
def write(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos_id: int,
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
        max_new_tokens: where a text is broken off.
        eos_id: token that ends a text.
        pad_id: token in the padding.
        seed: of the draws.
        top_k: tokens that may be drawn at each place; 0 is all.
        temperature: of the draws; 0 takes the likeliest token.
        advance: told after each batch how many texts are done.

    Returns:
        The new tokens of each text; the last one is ``eos_id`` where the model ended it.
    """
    draws = {"do_sample": True, "top_k": top_k, "temperature": temperature} if temperature else {"do_sample": False}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=eos_id, pad_token_id=pad_id, use_cache=True, num_beams=1, **draws
    )
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = settings
    devices = [model.device] if model.device.type == "cuda" else []
    written: list[list[int]] = []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed % (1 << 63))
            for start in range(0, len(prompts), BATCH):
                some = prompts[start : start + BATCH]
                width = max(map(len, some))
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
                for new in out_BL[:, width:].tolist():
                    written.append(new[: new.index(eos_id) + 1] if eos_id in new else new)
                advance(len(some))
    finally:
        model.generation_config = own
        model.train(training)
    return written

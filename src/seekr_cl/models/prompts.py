"""Virtual tokens before a text.

Shapes: B batch, L padded length, N virtual tokens, D the model's width.
"""

import torch
from torch import Tensor


def behind_prompts(text_BLD: Tensor, mask_BL: Tensor, prompt_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Texts padded on the left, and virtual tokens between their padding and them: embeddings and mask [B, L + N].

    PEFT puts the padding between the virtual tokens and the text and counts it in the positions, so an answer would
    depend on how long the batch's longest prompt is.
    """
    count, width = prompt_BND.shape[1], text_BLD.shape[1]
    embeds_BLD = torch.cat([text_BLD, torch.zeros_like(prompt_BND, dtype=text_BLD.dtype)], dim=1)
    for row, real in enumerate(mask_BL.sum(1).tolist()):
        start = width - real
        embeds_BLD[row, start : start + count] = prompt_BND[row]
        embeds_BLD[row, start + count :] = text_BLD[row, start:]
    return embeds_BLD, torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), count)], dim=1)

"""The official way in our own words: selected layers compute all heads' L x L probabilities and keep them for the loss.

Stands in for the research code, whose selected layers fall back from their fast kernel to plain attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


class Maps:
    """Attention of the chosen layers with its probabilities in the graph: ``{layer: [B, H, L, L]}``."""

    def __init__(self, layers: set[int]) -> None:
        self.layers = layers
        self.probabilities: dict[int, Tensor] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Replaces the function registered as ``sdpa`` for a block."""
        fast = AttentionInterface._global_mapping["sdpa"]

        def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **rest: Any) -> Any:
            if module.layer_idx not in self.layers:
                return fast(module, q, k, v, mask, **rest)
            group = q.shape[1] // k.shape[1]
            k_BHLD, v_BHLD = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            scores = q @ k_BHLD.mT * rest["scaling"]
            length = q.shape[2]
            future = torch.full((length, length), torch.finfo(q.dtype).min).triu(1)
            probabilities = (scores + future).softmax(-1, dtype=torch.float32).to(q.dtype)
            self.probabilities[module.layer_idx] = probabilities
            return (probabilities @ v_BHLD).transpose(1, 2).contiguous(), None

        AttentionInterface.register("sdpa", attention)
        try:
            yield
        finally:
            AttentionInterface.register("sdpa", fast)

    def divergence(self, heads: dict[int, list[int]], query_R: Tensor, teacher: dict[int, Tensor]) -> Tensor:
        """Mean KL of the chosen heads' rows, each layer alike; ``teacher`` holds [M, R, L] of each layer."""
        layers = []
        for layer, chosen in heads.items():
            student_MRL = self.probabilities[layer][0, chosen][:, query_R]
            T_MRL = teacher[layer]
            kl = torch.special.xlogy(T_MRL, T_MRL) - T_MRL * torch.log(student_MRL + 1e-8)
            layers.append(kl.sum(-1).mean())
        return torch.stack(layers).mean()

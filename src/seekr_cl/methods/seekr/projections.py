"""Maps from what heads give now to what they gave, learned beside the model while a task is trained (BFP).

Gu et al., "Preserving Linear Separability in Continual Learning by Backward Feature Projection", CVPR 2023, arXiv
2303.14595; what the paper leaves open is as in github.com/rvl-lab-utoronto/BFP: maps begin anew with each task, at
random (or, an option there too, as the identity), and an optimizer of their own trains them, gradient descent with
momentum 0.9 and a learning rate of 0.1. There is no bias, as in the paper's formula; the code has one.

Where the paper has one earlier model, a memory has one for each task, so each has maps of its own. A map stands in no
other term than the distance at its own head, so it is trained on the mean of that, whatever weight the term has beside
others: the learning rate means the same under every ``lambda2`` and for any number of heads.

Shapes: D head size, T tasks, H query heads, K (task, head) places of a layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention.features import DistillProjected, HeadMaps
from seekr_cl.distributed import collectives

STARTS = ("none", "identity", "random")
"""How maps begin; under ``none`` there are none."""
MOMENTUM = 0.9


class Projections:
    """The maps of one task's training.

    Args:
        heads: of each old task whose outputs are kept, ``{layer: heads}``.
        sizes: D of each layer.
        start: ``identity`` or ``random``.
        rate: the learning rate.
        seed: of the draw.
        device: where they are.

    Attributes:
        maps: of each layer that has any.
    """

    def __init__(
        self,
        heads: Sequence[Mapping[int, Sequence[int]]],
        sizes: Mapping[int, int],
        start: str,
        rate: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rate = rate
        self.maps: dict[int, HeadMaps] = {}
        self._velocity: dict[int, Tensor] = {}
        self._waiting: list[tuple[Any, DistillProjected]] = []
        generator = torch.Generator().manual_seed(seed)
        for layer in sorted({layer for chosen in heads for layer in chosen}):
            places = [(task, head) for task, chosen in enumerate(heads) for head in chosen.get(layer, ())]
            slot_TH = torch.full((len(heads), 1 + max(head for _, head in places)), -1)
            for slot, place in enumerate(places):
                slot_TH[place] = slot
            size = sizes[layer]
            matrix_KDD = torch.eye(size).repeat(len(places), 1, 1)
            if start == "random":
                matrix_KDD = (2 * torch.rand(matrix_KDD.shape, generator=generator) - 1) * size**-0.5
            self.maps[layer] = HeadMaps(matrix_KDD.to(device), slot_TH.to(device))
            self._velocity[layer] = torch.zeros_like(self.maps[layer].matrix_KDD)

    def note(self, batch: Any, distil: DistillProjected) -> None:
        """Says that a batch has been compared; compared once more, as for a measurement, it counts once."""
        if self._waiting and self._waiting[-1][0] is batch:
            self._waiting.pop()
        self._waiting.append((batch, distil))

    @torch.no_grad()
    def step(self) -> None:
        """One step on all that has been compared since the last: the mean over all rows of all processes."""
        waiting, self._waiting = self._waiting, []
        # All processes replay at the same steps, so that they agree on whether there is something to sum up.
        if not waiting:
            return
        slopes = [distil.slopes() for batch, distil in waiting if not batch.get("filler", False)]
        for layer, maps in self.maps.items():
            own = [one[layer] for one in slopes if layer in one]
            zero_KDD, zero_K = torch.zeros_like(maps.matrix_KDD), maps.matrix_KDD.new_zeros(len(maps.matrix_KDD))
            sum_KDD = collectives.all_reduce_sum(sum((one.to(zero_KDD) for one, _ in own), zero_KDD))
            count_K = collectives.all_reduce_sum(sum((one.to(zero_K) for _, one in own), zero_K))
            seen_K = count_K > 0
            mean_KDD = sum_KDD[seen_K] / count_K[seen_K, None, None]
            self._velocity[layer][seen_K] = MOMENTUM * self._velocity[layer][seen_K] + mean_KDD
            maps.matrix_KDD[seen_K] -= self.rate * self._velocity[layer][seen_K]

    def state_dict(self) -> dict[str, Tensor]:
        """Maps and momenta by name."""
        found = {f"map/{layer}": maps.matrix_KDD for layer, maps in self.maps.items()}
        return found | {f"velocity/{layer}": velocity for layer, velocity in self._velocity.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what ``state_dict`` gave."""
        for name, place in self.state_dict().items():
            place.copy_(tensors[name])

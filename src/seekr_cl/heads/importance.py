"""How much each attention head matters: task sensitivity times forgettability, accumulated over tasks.

Shapes: N tappable layers, H query heads. ``layers`` names the N layers by their index in the model.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

RULES = ("product_of_sums", "sum_of_products")


@dataclass(frozen=True, slots=True)
class HeadImportance:
    """Sums over the tasks learned so far.

    Attributes:
        layers: the model's layer index of each row.
        sensitivity_NH: sum over tasks of S~, each task's sensitivity normalized within its layer (eq. 7 and 8).
        forgettability_NH: sum over tasks of F (eq. 9).
        product_NH: sum over tasks of S~ F, what the official code accumulates.
    """

    layers: tuple[int, ...]
    sensitivity_NH: Tensor
    forgettability_NH: Tensor
    product_NH: Tensor

    @classmethod
    def zeros(cls, heads: dict[int, int]) -> Self:
        """Nothing seen yet.

        Args:
            heads: query heads of each tappable layer; layers may differ, missing heads stay at zero.
        """
        shape = (len(heads), max(heads.values(), default=0))
        return cls(tuple(heads), torch.zeros(shape), torch.zeros(shape), torch.zeros(shape))

    def add(self, sensitivity_NH: Tensor, forgettability_NH: Tensor) -> Self:
        """The sums with one more task in them; the arguments are that task's S~ and F."""
        S_NH, F_NH = sensitivity_NH.float().cpu(), forgettability_NH.float().cpu()
        return type(self)(
            self.layers, self.sensitivity_NH + S_NH, self.forgettability_NH + F_NH, self.product_NH + S_NH * F_NH
        )

    def scores(self, rule: str = "product_of_sums") -> Tensor:
        """Importance I [N, H] (eq. 10).

        Args:
            rule: ``product_of_sums`` is the paper's (sum_k S~^k)(sum_k F^k); ``sum_of_products`` the official code's.
        """
        if rule == "sum_of_products":
            return self.product_NH
        return self.sensitivity_NH * self.forgettability_NH


def normalise_within_layers(sensitivity_NH: Tensor) -> Tensor:
    """S~: each layer's sensitivities divided by their sum; a layer without any stays at zero."""
    total_N1 = sensitivity_NH.sum(1, keepdim=True)
    return torch.where(total_N1 > 0, sensitivity_NH / total_N1, 0.0)

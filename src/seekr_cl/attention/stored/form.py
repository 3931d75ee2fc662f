"""What the forms of stored rows share.

Shapes: M heads, R query rows, L tokens of the sample, K kept entries.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Self

import torch
from torch import Tensor

from seekr_cl.attention.stored.codec import small_float

_WHOLE = 2e-3
"""Rows that miss more than this of one have a sink; half-precision rows miss less by rounding."""


class Stored:
    """What the forms share: fields are tensors or ``None``; the first axis is the heads' unless said otherwise."""

    __slots__ = ()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for a file."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name.rpartition("_")[0]: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """From what ``tensors`` gave.

        Raises:
            ValueError: if one is missing or none of this form's.
        """
        names = {field.name.rpartition("_")[0]: field.name for field in fields(cls)}  # type: ignore[arg-type]
        if not tensors.keys() <= names.keys():
            raise ValueError(f"{sorted(tensors.keys() - names.keys())} of attention rows unknown")
        try:
            return cls(**{names[name]: tensor for name, tensor in tensors.items()})
        except TypeError as error:
            raise ValueError(f"attention rows: {error}") from error

    def pick(self, heads: list[int]) -> Self:
        """Some of the heads, in that order."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: None if t is None else t[heads] for name, t in named.items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The heads of all parts behind one another; where only some have a mass, the others' is one."""
        joined = {}
        for field in fields(cls):  # type: ignore[arg-type]
            found = [getattr(part, field.name) for part in parts]
            given = next((tensor for tensor in found if tensor is not None), None)
            if given is not None:
                shapes = [part.tensors()["code"].shape[:2] for part in parts] if any(t is None for t in found) else []
                found = [torch.ones(shapes[i], dtype=given.dtype) if t is None else t for i, t in enumerate(found)]
                joined[field.name] = torch.cat(found)
        return cls(**joined)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: None if t is None else t.to(device) for name, t in named.items()})

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


def missing_mass(rows_MRL: Tensor, dtype: str) -> Tensor | None:
    """What rows sum to [M, R], or ``None`` if that is one everywhere."""
    mass_MR = rows_MRL.sum(-1)
    return None if ((1 - mass_MR).abs() < _WHOLE).all() else mass_MR.to(small_float(dtype))


def mass_or_ones(mass_MR: Tensor | None, code_MRK: Tensor) -> Tensor:
    """The rows' sums [M, R]."""
    return torch.ones(code_MRK.shape[:-1], device=code_MRK.device) if mass_MR is None else mass_MR.float()


def fits(tensor: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether a tensor that may be absent has that shape."""
    return tensor is None or tensor.shape == shape

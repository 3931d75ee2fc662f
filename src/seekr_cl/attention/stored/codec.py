"""How teacher rows are written down: probabilities, vectors and positions in few bits, tensors by name.

Eight bits hold a probability by its square root: KL is flat in that coordinate, so equal steps in it cost equal
divergence. Scale and most rounding cancel, for what was kept of a distribution is made to sum to the mass it had.

Shapes: M heads, R query rows, L tokens of the sample, K kept entries, N anything.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Self

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.uint8}
"""Precision of teacher signals by its name in the settings, and what probabilities are stored as."""
_WHOLE = 2e-3
"""Rows that miss more than this of one have a sink; half-precision rows miss less by rounding."""


def small_float(dtype: str) -> torch.dtype:
    """What single numbers beside the entries are stored as: they are few, so never in 8 bits."""
    return torch.float32 if dtype == "float32" else torch.float16


def encode_probabilities(prob_NK: Tensor, dtype: str, keep_small: bool = False) -> Tensor:
    """Probabilities as floats of ``dtype``, or under ``int8`` as the square root on 256 steps up to the row's largest.

    Args:
        prob_NK: probabilities.
        dtype: a key of ``DTYPES``.
        keep_small: round nothing but zero to zero, for forms in which a zero means something else.

    Returns:
        [..., K], to be read by ``decode_probabilities``.
    """
    if dtype != "int8":
        return prob_NK.to(DTYPES[dtype])
    largest_N1 = prob_NK.amax(-1, keepdim=True).clamp_min(torch.finfo(prob_NK.dtype).tiny)
    code_NK = (255 * (prob_NK / largest_N1).clamp(0, 1).sqrt()).round().to(torch.uint8)
    return torch.where((prob_NK > 0) & (code_NK == 0), torch.ones_like(code_NK), code_NK) if keep_small else code_NK


def decode_probabilities(code_NK: Tensor, mass_N: Tensor) -> Tensor:
    """Float32 probabilities [..., K] that sum to ``mass_N``; what was stored in float32 is returned as it is."""
    if code_NK.dtype == torch.float32:
        return code_NK
    weight_NK = code_NK.float()
    if code_NK.dtype == torch.uint8:
        weight_NK = weight_NK.square_()
    total_N = weight_NK.sum(-1)
    # A row without any mass (a query that sees nothing) stays empty.
    return weight_NK * torch.where(total_N > 0, mass_N.float() / total_N, 0.0)[..., None]


def encode_vectors(vector_ND: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Vectors as floats of ``dtype``, or under ``int8`` in steps of 1/127 of each one's largest component.

    Returns:
        the components [..., D] and the size of a step [...], ``None`` for floats.
    """
    if dtype != "int8":
        return vector_ND.to(DTYPES[dtype]), None
    step_N = (vector_ND.float().abs().amax(-1) / 127).clamp_min(torch.finfo(torch.float16).tiny).half()
    return (vector_ND.float() / step_N.float()[..., None]).round().clamp(-127, 127).to(torch.int8), step_N


def decode_vectors(vector_ND: Tensor, step_N: Tensor | None) -> Tensor:
    """Float32 vectors [..., D]."""
    return vector_ND.float() if step_N is None else vector_ND.float() * step_N.float()[..., None]


def narrow_index(index: Tensor, bound: int) -> Tensor:
    """Integers from 0 to ``bound`` - 1 in the smallest type that holds these all and that safetensors knows."""
    return index.to(torch.uint8 if bound <= 1 << 8 else torch.uint16 if bound <= 1 << 16 else torch.int32)


class Stored:
    """What the forms share: fields are tensors or ``None``; the first axis is the heads' unless said otherwise."""

    __slots__ = ()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for a file."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name.rpartition("_")[0]: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """From what ``tensors`` gave; ValueError if one is missing or none of this form's."""
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

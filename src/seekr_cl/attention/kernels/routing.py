"""Triton kernels for the divergence between attention rows, for calls that they cover on devices that run them.

The PyTorch tiles of ``divergence`` are the reference and do everything else. Triton is imported by the first call that
uses it, so the library needs it only where it has a GPU.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from seekr_cl.attention.call import AttentionCall
from seekr_cl.attention.kernels import state
from seekr_cl.attention.stored.dense import DenseRows
from seekr_cl.attention.stored.factors import FactorRows
from seekr_cl.attention.stored.top_k import TopKRows
from seekr_cl.attention.targets import RowTarget

__all__ = ["available", "route", "runs_on", "usable"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_TRITON = (3, 7)
"""The oldest that the tests ran with; older ones come with older releases of torch."""
LARGEST_HEAD = 256
MOST_KEPT = 128
"""Entries of a top-k row that a block can hold in registers."""


@contextmanager
def route(to: state.Way) -> Iterator[None]:
    """For tests and measurements: sends calls to the kernels on any device (with Triton's interpreter), or never.

    It decides about forward passes; a backward pass goes the way of its forward. Not for several threads.
    """
    former, state.way = state.way, to
    try:
        yield
    finally:
        state.way = former


def usable(call: AttentionCall, target: RowTarget, eps: float) -> bool:
    """Whether this call goes to the kernels: they cover it and its device runs them."""
    if state.way == "tiles" or eps or not available(call, target):
        return False
    return state.way == "kernels" or _runs(call.q_BHLD.device)


def available(call: AttentionCall, target: RowTarget) -> bool:
    """Whether the kernels cover the call's dtypes, mask, head size and kind of teacher, on whatever device."""
    q_BHLD, k_BKLD, mask = call.q_BHLD, call.k_BKLD, call.mask
    if q_BHLD.dtype not in DTYPES or k_BKLD.dtype != q_BHLD.dtype or q_BHLD.shape[-1] > LARGEST_HEAD:
        return False
    if not target.index.query_PR.numel() or not _readable(mask):
        return False
    teacher = target.teacher
    if isinstance(teacher, FactorRows):
        q_PRD, k_GLD = teacher.q_PRD, teacher.k_GLD
        same = q_PRD.dtype == k_GLD.dtype and k_GLD.shape[1:] == k_BKLD.shape[2:]
        return same and q_PRD.dtype in DTYPES and q_PRD.shape[-1] == q_BHLD.shape[-1]
    if isinstance(teacher, TopKRows):
        return teacher.prob_PRK.dtype in DTYPES and 0 < teacher.prob_PRK.shape[-1] <= MOST_KEPT
    return isinstance(teacher, DenseRows) and teacher.prob_PRL.dtype in DTYPES


def _readable(mask: object) -> bool:
    if not isinstance(mask, Tensor):
        return mask is None
    if mask.requires_grad:
        return False
    return mask.dim() == 2 or (mask.dim() == 4 and mask.dtype in (torch.bool, *DTYPES))


def runs_on(device: torch.device) -> bool:
    """Whether the kernels can be built and run on a device."""
    return _runs(device)


@cache
def _runs(device: torch.device) -> bool:
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return False
    # Triton builds the code that launches a kernel with the machine's own compiler.
    if not any((os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang"))):
        return False
    # Triton's oldest supported generation with bfloat16; AMD's numbers for theirs are larger.
    return torch.cuda.get_device_capability(device) >= (8, 0)

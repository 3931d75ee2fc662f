"""How large the kernels' blocks are.

A rule rather than timing on the spot: blocks change the order of sums, and two runs of one training should agree.
"""

from typing import Any

import torch
from torch import Tensor

AMPLE = 160 * 1024
"""Shared memory of a block, in bytes, from which a device counts as large (A100 and H100 do)."""

SMALLEST = 16
"""The fewest rows that tensor cores multiply."""

override: dict[str, dict[str, int]] = {}
"""Choices by kernel that a measurement tries instead of the rule's."""


def choose(kernel: str, arguments: dict[str, Any], q_BHLD: Tensor) -> dict[str, int]:
    """Rows (BM) and keys (BN) of a block with Triton's launch options.

    Args:
        kernel: ``"forward"``, ``"queries"`` or ``"keys"``.
        arguments: the kernel's; the padded head size, the kind of teacher and the number of rows matter.
        q_BHLD: for its dtype and device.
    """
    if kernel in override:
        return override[kernel]
    if q_BHLD.device.type != "cuda":
        return {"BM": 16, "BN": 16}
    properties = torch.cuda.get_device_properties(q_BHLD.device)
    ample = getattr(properties, "shared_memory_per_block_optin", 0) >= AMPLE
    blocks = rule(kernel, arguments["DP"], arguments["TEACHER"], q_BHLD.element_size() == 2, ample)
    if kernel != "keys":
        # Each program streams the keys by itself: with few rows, lower blocks keep more of the device at work.
        pairs, rows = arguments["query"].shape
        while blocks["BM"] > SMALLEST and pairs * -(-rows // blocks["BM"]) < properties.multi_processor_count:
            blocks["BM"] //= 2
    return blocks


def rule(kernel: str, size: int, teacher: int, half: bool, ample: bool) -> dict[str, int]:
    """The choice for a padded head size, a kind of teacher (0 whole, 1 top-k, 2 factors), a dtype and a device."""
    kept, factors = teacher == 1, teacher == 2
    if not half:
        return _blocks(32, 32, 4, 1) if size <= 128 else _blocks(16, 32, 4, 1)
    if size > 128:
        return _blocks(64, 32, 8, 1)
    if kernel == "forward" and not factors and ample:
        return _blocks(128, 64, 8, 3)
    if kernel == "keys":
        return _blocks(32 if factors and not ample else 64, 64, 4, 2 if ample else 1)
    # The gathered keys of a top-k teacher take registers: four warps would not have them.
    return _blocks(64, 64, 8 if kept else 4, 2 if ample else 1)


def _blocks(rows: int, keys: int, warps: int, stages: int) -> dict[str, int]:
    return {"BM": rows, "BN": keys, "num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}

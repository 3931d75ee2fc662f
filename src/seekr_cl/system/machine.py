"""What this machine has: device, memory, disk, and what it computes in."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training on one device has to work with.

    Attributes:
        kind: ``cuda``, ``mps``, ``cpu`` or the like.
        name: the device's.
        memory: bytes that a training may take there: the device's own, or the RAM of a CPU.
        free: bytes of them that nobody holds now.
        bf16: whether it computes in bfloat16 by itself.
    """

    kind: str
    name: str
    memory: int
    free: int
    bf16: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON; sizes in bytes."""
        return asdict(self)


def this_machine(use_cpu: bool = False) -> Machine:
    """The device that a training in this process would use."""
    if torch.cuda.is_available() and not use_cpu:
        free, total = torch.cuda.mem_get_info()
        # Compute capability 8.0 (Ampere) is the first with bfloat16 units; before it is emulated.
        bf16 = bool(torch.version.hip) or torch.cuda.get_device_capability()[0] >= 8
        return Machine("cuda", torch.cuda.get_device_name(), total, free, bf16)
    ram = psutil.virtual_memory()
    if torch.backends.mps.is_available() and not use_cpu:
        return Machine("mps", "Apple GPU", ram.total, ram.available, False)
    return Machine("cpu", "CPU", ram.total, ram.available, False)


def disk_free(path: Path) -> int:
    """Bytes free where a path lies or would lie."""
    standing = next(above for above in [path.absolute(), *path.absolute().parents] if above.is_dir())
    return shutil.disk_usage(standing).free

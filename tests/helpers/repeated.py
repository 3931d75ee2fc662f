"""What libraries do again in each training although it comes to the same: a twentieth of a tiny one's time."""

import sys
from importlib import import_module
from typing import Any

_found: dict[Any, bool | None] = {}


def remember() -> None:
    """Once in a process that trains often, or forks those that train."""
    _seed_no_absent_device()
    _look_for_packages_once()


def _seed_no_absent_device() -> None:
    """Each ``torch.manual_seed`` writes down the whole call stack for a device that may be there later.

    Only where this torch knows none: to ask whether one is there would keep forked processes from it.
    """
    torch = import_module("torch")
    for name in ("cuda", "xpu", "mtia"):
        if not getattr(torch, name)._is_compiled():
            for module in (getattr(torch, name), sys.modules.get(f"torch.{name}.random")):
                if hasattr(module, "_lazy_call"):
                    module._lazy_call = lambda call, **kind: None


def _look_for_packages_once() -> None:
    """An ``Accelerator`` looks through all folders for each of thirty packages, absent ones as well."""
    imports: Any = import_module("accelerate.utils.imports")
    look = imports._is_package_available

    def available(name: str, metadata_name: str | None = None) -> bool | None:
        key = (name, metadata_name, tuple(sys.path), id(sys.modules.get(name)))
        if key not in _found:
            _found[key] = look(name, metadata_name)
        return _found[key]

    imports._is_package_available = available

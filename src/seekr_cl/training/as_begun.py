"""Settings of what is resumed that a machine chose when it was begun: whoever left them open goes on with them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.system import reading
from seekr_cl.training.progress import console

OPEN = ("bf16", "per_device_train_batch_size", "gradient_accumulation_steps")
"""What the machine decides where the user does not."""
REASON = "what is resumed was begun with it"


def training_of(path: Path, *keys: str) -> Mapping[str, Any] | None:
    """Deciding settings in a file of a run or a checkpoint; ``None`` if it is missing or damaged.

    Args:
        path: the file, as JSON.
        keys: of the mapping that has them under ``training``.
    """
    try:
        content = reading.read_json(path, bounded=False)
        for key in (*keys, "training"):
            content = content[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if isinstance(content, dict) else None


def left_open(config: SeekrConfig, begun: Mapping[str, Any], is_open: Callable[[str], bool]) -> dict[str, Any]:
    """Those of ``OPEN`` that were begun otherwise, with the values that they were begun with.

    Args:
        config: all settings.
        begun: deciding settings of what is resumed.
        is_open: whether the user has left a setting to the machine.
    """
    # Not both precisions; that it is another one is refused by its name.
    keys = [key for key in OPEN if key in begun and not (key == "bf16" and config.fp16)]
    return {key: begun[key] for key in keys if is_open(key) and begun[key] != getattr(config, key)}


def as_begun(config: SeekrConfig, begun: Mapping[str, Any] | None) -> SeekrConfig:
    """A config with what was chosen when it was begun, where it has the library's default.

    Args:
        config: all settings; stays as it is.
        begun: deciding settings of what is resumed, if there is something.
    """
    if begun is None:
        return config
    values = left_open(config, begun, lambda key: getattr(config, key) == _default(key))
    if not values:
        return config
    taken = dataclasses.replace(config, **values)
    # A copy takes for the user's own what was settled for the first one.
    taken.training_sources = config.training_sources
    if config.progress != "none" and collectives.is_main():
        for key, value in values.items():
            console().print(f"{key}={value}: {REASON}", soft_wrap=True, markup=False)
    return taken


def _default(key: str) -> Any:
    return SeekrConfig.__dataclass_fields__[key].default

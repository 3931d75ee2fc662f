"""Settings that the user left open and that the machine decides, for every command that trains."""

from collections.abc import Mapping
from typing import Any

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.planning import adapter_size
from seekr_cl.planning.fit import Choice, choose, known_shape
from seekr_cl.planning.shape import ModelShape
from seekr_cl.system.machine import Machine, this_machine
from seekr_cl.training.progress import console


def open_choices(settings: Mapping[str, Any], config: SeekrConfig, model: str) -> list[Choice]:
    """What fits this machine better than the defaults, of what the user left open; nothing on a CPU.

    Args:
        settings: what the user set.
        config: made of them.
        model: folder or Hub name.
    """
    machine = this_machine(config.use_cpu)
    if machine.kind != "cuda" or collectives.launched_world_size() > 1:
        return []
    shape = known_shape(model)
    return choose(settings, config, machine, shape, trained_adapter(model, config, shape))


def trained_adapter(model: str, config: SeekrConfig, shape: ModelShape | None) -> int | None:
    """Bytes of the adapter that is trained; ``None`` if all weights are, or it is not known."""
    return None if shape is None else adapter_size(model, config.peft)


def show_choices(choices: list[Choice], config: SeekrConfig) -> None:
    """Prints each with its reason, and how it is set otherwise."""
    if config.progress != "none" and collectives.is_main():
        for one in choices:
            console().print(f"{one.key}={one.value}: {one.reason}", soft_wrap=True, markup=False)


__all__ = ["Choice", "Machine", "open_choices", "show_choices", "trained_adapter"]

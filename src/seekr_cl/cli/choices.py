"""Settings that the user left open and that the machine decides, for every command that trains."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.planning import adapter_size
from seekr_cl.planning.fit import Choice, choose, known_shape
from seekr_cl.planning.shape import ModelShape
from seekr_cl.runs.stream_run import LEDGER
from seekr_cl.system.machine import Machine, this_machine
from seekr_cl.training.as_begun import REASON, left_open, training_of
from seekr_cl.training.checkpoint import STATE, Checkpoints
from seekr_cl.training.places import checkpoints_of
from seekr_cl.training.progress import console


def fitted(
    settings: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], SeekrConfig],
    model: str,
    begun: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
) -> tuple[SeekrConfig, list[Choice]]:
    """A config with what the machine decides put in, and what that is: nothing on a CPU.

    Args:
        settings: what the user set.
        make: makes a config; what it warns of is said once.
        model: folder or Hub name.
        begun: deciding settings of what is resumed, whose choices are kept, whatever this machine would choose.
        machine: default this one.
    """
    machine = machine or this_machine(bool(settings.get("use_cpu")))
    if begun is None and (machine.kind != "cuda" or collectives.launched_world_size() > 1):
        return make(settings), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draft = make(settings)
    if begun is None:
        shape = known_shape(model)
        choices = choose(settings, draft, machine, shape, trained_adapter(model, draft, shape))
    else:
        choices = _as_begun(settings, draft, begun)
    return make({**settings, **{one.key: one.value for one in choices}}), choices


def _as_begun(settings: Mapping[str, Any], draft: SeekrConfig, begun: Mapping[str, Any]) -> list[Choice]:
    values = left_open(draft, begun, lambda key: settings.get(key) is None)
    return [Choice(key, value, REASON) for key, value in values.items()]


def begun_run(output: str) -> Mapping[str, Any] | None:
    """Deciding settings of the run in a folder; ``None`` if there is none, or a damaged one, which is refused later."""
    return training_of(Path(output) / LEDGER)


def begun_learning(output: str) -> Mapping[str, Any] | None:
    """The same of an interrupted learning into a folder, from its newest checkpoint that can be read."""
    saves = Checkpoints(checkpoints_of(Path(output)))
    found = (training_of(saves.path(number) / STATE, "identity") for number in reversed(saves.numbers()))
    return next((one for one in found if one is not None), None)


def trained_adapter(model: str, config: SeekrConfig, shape: ModelShape | None) -> int | None:
    """Bytes of the adapter that is trained; ``None`` if all weights are, or it is not known."""
    return None if shape is None else adapter_size(model, config.peft)


def show_choices(choices: list[Choice], config: SeekrConfig) -> None:
    """Prints each with its reason, and how it is set otherwise."""
    if config.progress != "none" and collectives.is_main():
        for one in choices:
            console().print(f"{one.key}={one.value}: {one.reason}", soft_wrap=True, markup=False)


__all__ = ["Choice", "Machine", "begun_learning", "begun_run", "fitted", "show_choices", "trained_adapter"]

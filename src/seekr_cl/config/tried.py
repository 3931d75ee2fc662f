"""Settings that pass through to transformers are tried before anything is loaded, on a model of one layer."""

import copy
import dataclasses
import math
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer

from seekr_cl.config.muon import MUON
from seekr_cl.distributed import collectives
from seekr_cl.environment import take_back, untouched_by_refusal
from seekr_cl.errors import ConfigError, SeekrError, first_line

MOST_BATCHES = 100_000_000
"""Of one task over all its epochs: their order is a list made before training."""
_STEPS = 10
_BESIDE = {
    "optim": ("optim_args", "adam_epsilon", "adam_beta1", "adam_beta2"),
    "lr_scheduler_type": ("lr_scheduler_kwargs", "warmup_steps"),
}
_TARGETED = ("galore", "apollo")
"""Optimizers that look at ``optim_target_modules``."""


_MOST: dict[str, float] = {
    # Tasks and epochs are added to it, and generators take 63 bits.
    "seed": 1 << 62,
    "num_train_epochs": 1_000_000,
    "dataloader_num_workers": 256,
    "gradient_accumulation_steps": 1 << 20,
    "per_device_train_batch_size": 1 << 20,
    "per_device_eval_batch_size": 1 << 20,
    "max_length": 1 << 30,
    "learning_rate": 1e6,
    "logging_steps": 1 << 40,
    "warmup_steps": 1 << 40,
}


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class _Nothing(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return index


def require_bounds(config: Any) -> None:
    """Refuses numbers that nobody means and that would take all memory or time, or overflow.

    Args:
        config: a ``SeekrConfig`` that is being made.

    Raises:
        ConfigError: naming the setting.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        if type(value) is float and not math.isfinite(value):
            raise ConfigError(f"{field.name}: {value} is not a finite number")
    for key, most in _MOST.items():
        value = getattr(config, key)
        if type(value) in (int, float) and value > most:
            raise ConfigError(f"{key}: {value:g} must be at most {most:g}")
    if isinstance(config.parallelism_config, Mapping):
        raise ConfigError("parallelism_config: a mapping has no effect; name an accelerate config with --launch")


def try_settings(config: Any) -> frozenset[str] | None:
    """Has the Trainer make what it makes of settings alone: its accelerator, the optimizer and the schedule.

    Of several processes none tries: an accelerator for a toy would be the one that the model gets.

    Args:
        config: a ``SeekrConfig``.

    Returns:
        Names of what the optimizer keeps of each weight; ``None`` if it was not tried, or keeps not the same of all.

    Raises:
        ConfigError: naming the setting that the Trainer refuses.
    """
    if config.optim_target_modules is not None and not str(_plain(config.optim)).startswith(_TARGETED):
        raise ConfigError(
            f"optim_target_modules: would be ignored: optim: {_plain(config.optim)} trains all weights alike; remove it"
        )
    if collectives.launched_world_size() > 1 or config.optim == MUON:
        return None
    args = copy.copy(config)
    args.output_dir, args.max_steps = tempfile.gettempdir(), _STEPS
    if args.optim_target_modules is not None:
        args.optim_target_modules = ["linear"]
    with _same_draws():
        with refused(config, "training settings"):
            trainer = Trainer(_Toy(), args, train_dataset=_Nothing())
        with refused(config, "optim"):
            trainer.create_optimizer()
        with refused(config, "lr_scheduler_type"):
            trainer.create_scheduler(_STEPS, trainer.optimizer)
        with refused(config, "optim"):
            weight = next(trainer.model.parameters())  # type: ignore[union-attr]
            weight.grad = torch.zeros_like(weight)
            trainer.optimizer.step()  # type: ignore[union-attr]
            state = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state  # type: ignore[union-attr]
            return frozenset(state.get(weight, {}))


@contextmanager
def refused(config: Any, key: str) -> Iterator[None]:
    """What transformers raises of settings, as one line that names them.

    Args:
        config: all settings.
        key: the setting in question, or a word for all of them.

    Raises:
        ConfigError: for whatever was raised within.
    """
    try:
        with untouched_by_refusal():
            yield
    except (SeekrError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each optimizer, scheduler and integration raises what it likes
        # The next config must not find what this one had written.
        take_back(getattr(config, "environment_changes", {}))
        if isinstance(error, RuntimeError) and collectives.launched_world_size() > 1:
            # Most likely another process is gone, which is no fault of the settings.
            raise
        line = first_line(error)
        reports = [one for one in config.report_to or [] if one != "none"]
        if key == "training settings" and reports and "install" in str(error):
            raise ConfigError(
                f"report_to: {', '.join(reports)} cannot be used ({line}); install it, or set report_to: none"
            ) from error
        # What was said beside it is as likely to be wrong.
        usual = {field.name: field.default for field in dataclasses.fields(config)}
        keys = [key, *(one for one in _BESIDE.get(key, ()) if getattr(config, one) not in (None, {}, usual[one]))]
        said = ", ".join(f"{one} {_plain(getattr(config, one))}" if hasattr(config, one) else one for one in keys)
        raise ConfigError(f"{said}: {line[:300]}; change or remove it") from error


def require_schedulable(name: str, examples: int, epochs: float) -> None:
    """Refuses more epochs than anybody trains for, before their schedule takes all memory.

    Raises:
        ConfigError: naming the task.
    """
    if not math.isfinite(epochs) or examples * epochs > MOST_BATCHES:
        raise ConfigError(
            f"task '{name}': {epochs:g} epochs of {examples} examples are more than {MOST_BATCHES}; lower "
            "num_train_epochs or the task's epochs"
        )


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


@contextmanager
def _same_draws() -> Iterator[None]:
    """A Trainer seeds every generator when it is made."""
    own, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(own)
        np.random.set_state(array)

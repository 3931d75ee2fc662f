"""What callers of ``learn`` have in hand, as the library has it."""

from dataclasses import replace
from typing import Any

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError
from seekr_cl.tasks import Task
from seekr_cl.tasks.in_memory import is_rows


def as_tasks(given: Any) -> list[Task]:
    """What a user gave to learn, as tasks; rows without a name of their own are named after what is in them."""
    if isinstance(given, Task):
        return [given]
    if isinstance(given, list | tuple) and given and all(isinstance(one, Task) for one in given):
        return list(given)
    if not is_rows(given):
        return [Task.load(given)]
    unnamed = Task.load(given, name="task")
    return [replace(unnamed, name=f"task-{unnamed.fingerprint()[:8]}")]


def require_config(config: Any) -> None:
    """Refuses what is no config.

    Raises:
        ConfigError: saying what to make instead.
    """
    if not isinstance(config, SeekrConfig):
        kind = type(config).__name__
        raise ConfigError(f"config: a {kind} is not a SeekrConfig; make one with SeekrConfig(output_dir=...)")

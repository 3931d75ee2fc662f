"""What the demo runs: a stream, its settings, and the methods with and without a task 0 of base skills."""

from dataclasses import dataclass
from typing import Any

TRAIN_EXAMPLES = 400
TEST_EXAMPLES = 100
PROBE_EXAMPLES = 50
GENERAL_POOL = 50
GENERAL_SAMPLES = 32

SETTINGS: dict[str, Any] = {
    "num_train_epochs": 8,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 100,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "measure_every": 20,
    "max_length": 64,
}
"""Of every method."""

REPLAY: dict[str, Any] = {"ratio": 0.02, "every": 3}
"""Of every method that replays: 8 of 400 examples, a replay batch after every third new one."""

METHODS: dict[str, dict[str, Any]] = {
    "seqft": {"name": "seqft"},
    "multitask": {"name": "multitask"},
    "replay": {"name": "replay"},
    "derpp": {"name": "derpp"},
    "seekr": {"name": "seekr", "heads": "all", "query_budget": None},
}
"""What a method is given in the demo; the memory is measured in bytes, so SEEKR keeps all heads of this small model."""

GENERAL_SUFFIX = "+general"
DEFAULT_VARIANTS = ("seqft", "replay", "derpp", "seekr", "derpp+general", "seekr+general")


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of the demo.

    Attributes:
        name: a method's name, with ``+general`` if base skills go into the memory first.
        settings: the run's settings.
    """

    name: str
    settings: dict[str, Any]


def make_variant(name: str, seed: int, general: str, overrides: dict[str, Any]) -> Variant:
    """The settings of a variant.

    Args:
        name: a key of ``METHODS``, with or without ``+general``.
        seed: of the run.
        general: file with examples of the base skills.
        overrides: settings that replace the demo's where the method knows them.
    """
    from seekr_cl.errors import ConfigError, nearest
    from seekr_cl.methods import get_method

    method = name.removesuffix(GENERAL_SUFFIX)
    if method not in METHODS:
        raise ConfigError(f"--methods: '{name}' is not in the demo{nearest(method, METHODS)} ({', '.join(METHODS)})")
    own = dict(METHODS[method])
    own |= {key: value for key, value in dict(overrides.get("method") or {}).items() if _knows(method, key)}
    settings = {**SETTINGS, **{k: v for k, v in overrides.items() if k not in ("method", "replay")}}
    settings |= {"method": own, "seed": seed}
    if get_method(method).keeps:
        settings["replay"] = {**REPLAY, **dict(overrides.get("replay") or {})}
    if name.endswith(GENERAL_SUFFIX):
        settings |= {"general": general, "general_samples": GENERAL_SAMPLES}
    return Variant(name, settings)


def _knows(method: str, key: str) -> bool:
    from dataclasses import fields

    from seekr_cl.methods import get_method

    return key in [field.name for field in fields(get_method(method).Settings)]

"""Which method, with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seekr_cl.methods.base import Method
from seekr_cl.methods.registry import get_method
from seekr_cl.settings import build


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """A method and its settings.

    Attributes:
        kind: the class.
        settings: an object of ``kind.Settings``.
    """

    kind: type[Method]
    settings: Any

    @property
    def name(self) -> str:
        """What the method is called in YAML and on the command line."""
        return self.kind.name

    @property
    def steers(self) -> bool:
        """Whether a term's weight follows the measured gradient norms, as a property of that name of Settings says."""
        return bool(getattr(self.settings, "steers", False))


def read_method(value: Any, preset: Mapping[str, Any]) -> MethodConfig:
    """The method that was asked for.

    Args:
        value: a name, a mapping with ``name`` and settings, a ``Method`` class, or a ``MethodConfig``.
        preset: settings by method that take the place of the methods' own defaults.

    Raises:
        ConfigError: for an unknown name or key, naming the nearest, or a value that cannot be.
    """
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, type) and issubclass(value, Method):
        kind, given = value, {}
    elif isinstance(value, Mapping):
        given = dict(value)
        kind = get_method(given.pop("name", "seekr"))
    else:
        kind, given = get_method("seekr" if value is None else value), {}
    # A preset's ``replay`` is about the replay settings; the method of that name has none.
    own = {} if kind.name == "replay" else dict(preset.get(kind.name, {}))
    return MethodConfig(kind, build(kind.Settings, given, "method", own))

"""Settings that have another name or other values than in the last release, which are still read.

An entry goes with the next release; ``as_named_now`` keeps what older versions wrote comparable for as long.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from seekr_cl.errors import ConfigError, nearest

RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "boundary": ("prompt_boundary", {"exact": "separate", "joint": "merged"}),
}
"""By old name: the new name, and the new value for each old one."""


class RenamedWarning(FutureWarning):
    """A setting was given by its old name."""


def rename_settings(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Settings under their present names, with a ``RenamedWarning`` for each that had its old one.

    Args:
        settings: top-level settings by name.
        where: what messages begin with, such as a file's name and a colon.

    Raises:
        ConfigError: if an old name has an unknown value, or stands beside the new one with another value.
    """
    current = {key: value for key, value in settings.items() if key not in RENAMED}
    for old in settings.keys() & RENAMED.keys():
        value = settings[old]
        if value is None:
            continue
        new, values = RENAMED[old]
        if not isinstance(value, str) or value not in values:
            raise ConfigError(
                f"{where}{old}: {value!r} is unknown{nearest(str(value), values)}; the setting is now {new}: "
                f"{' or '.join(values.values())}"
            )
        if current.get(new) not in (None, values[value]):
            raise ConfigError(f"{where}{old}: old name of {new}, which is set to {current[new]!r}; remove {old}")
        current[new] = values[value]
        warnings.warn(
            f"{where}{old}: {value} is deprecated and will be removed in the next release; use {new}: {values[value]}",
            RenamedWarning,
            stacklevel=3,
        )
    return current


def current_value(old: str, value: Any) -> Any:
    """A value of a renamed setting that may still be an old one, which is warned of."""
    new, values = RENAMED[old]
    if not isinstance(value, str) or value not in values:
        return value
    warnings.warn(f"{new}: {value} is deprecated; use {values[value]}", RenamedWarning, stacklevel=3)
    return values[value]


def as_named_now(content: Any) -> Any:
    """JSON of an older version of the library with settings under their present names."""
    if isinstance(content, list):
        return [as_named_now(item) for item in content]
    if not isinstance(content, dict):
        return content
    renamed: dict[str, Any] = {}
    for key, value in content.items():
        new, values = RENAMED.get(key, (key, {}))
        renamed[new] = values.get(value, value) if isinstance(value, str) else as_named_now(value)
    if renamed.get("what") in RENAMED:
        # A deviation from a benchmark's protocol.
        new, values = RENAMED[renamed["what"]]
        renamed["what"] = new
        for key in ("official", "here"):
            renamed[key] = values.get(str(renamed.get(key)), renamed.get(key))
    return renamed

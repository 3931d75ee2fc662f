"""Settings from a YAML file and ``key=value`` overrides, for every command alike."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError
from seekr_cl.methods import get_method
from seekr_cl.renamed import RENAMED, rename_settings
from seekr_cl.replay.config import KEEPING
from seekr_cl.system.yaml_file import expand, parse_yaml, read_yaml
from seekr_cl.tasks.task import check_switch

_REPLAY_KEYS = ("replay", "general", "general_samples")


def read_settings(path: str | None) -> dict[str, Any]:
    """A settings file's top level with ``${VAR}`` filled in; nothing for ``None``.

    Raises:
        ConfigError: if it is missing or is not a YAML mapping.
    """
    if path is None:
        return {}
    return {str(key): expand(value, f"{path}: key {key!r}") for key, value in read_yaml(Path(path), "method").items()}


def apply_overrides(settings: Mapping[str, Any], overrides: Iterable[str], method: str | None) -> dict[str, Any]:
    """The settings with ``--method`` and ``key=value`` pairs put in; a dot goes into a mapping.

    Another method than the file's keeps none of the file's method settings, nor its replay if it does not replay.

    Raises:
        ConfigError: for a pair without ``=`` or a value that is not YAML.
    """
    merged = rename_settings(settings)
    if isinstance(merged.get("method"), str):
        merged["method"] = {"name": merged["method"]}
    if method is not None:
        former = dict(merged.get("method") or {})
        # Another method's settings would only be refused one by one.
        merged["method"] = {**former, "name": method} if former.get("name", method) == method else {"name": method}
        # The file was written for another method; what it says of replay is not for this one.
        if not get_method(method).keeps:
            merged = {key: value for key, value in merged.items() if key not in _REPLAY_KEYS}
        elif not get_method(method).replays and isinstance(merged.get("replay"), Mapping):
            merged["replay"] = {key: value for key, value in merged["replay"].items() if key in KEEPING}
    for pair in overrides:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"'{pair}' is not a setting; write key=value, e.g. replay.ratio=0.02")
        # YAML takes the brace or the colon of a template for a mapping, and cuts off its spaces.
        verbatim = key.startswith("columns.") and not text.startswith(('"', "'"))
        try:
            value = text if verbatim else parse_yaml(text)
        except ValueError as error:
            raise ConfigError(f"{key}: {text[:80]!r} is not a value ({error})") from error
        place = merged
        *outer, last = key.split(".")
        for part in outer:
            inner = place.get(part)
            place[part] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[part]
        place[last] = value
        if key in RENAMED:
            merged.pop(RENAMED[key][0], None)
            merged = rename_settings(merged)
    return merged


def benchmark_overrides(overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """``benchmark.KEY=VALUE`` pairs as a mapping, and the pairs that are about anything else.

    Raises:
        ConfigError: for a value that is not YAML.
    """
    pairs = list(overrides)
    ours = [pair for pair in pairs if pair.startswith("benchmark.")]
    mapping = apply_overrides({}, ours, None).get("benchmark", {})
    return mapping, [pair for pair in pairs if pair not in ours]


def data_settings(overrides: Iterable[str]) -> tuple[dict[str, str] | None, bool, list[str]]:
    """``columns.KEY=COLUMN`` pairs as a mapping, whether ``allow_empty`` is on, and the pairs about anything else.

    Raises:
        ConfigError: for a value that is not YAML, or ``allow_empty`` that is neither true nor false.
    """
    pairs = list(overrides)
    ours = [pair for pair in pairs if pair.startswith(("columns.", "columns=", "allow_empty="))]
    said = apply_overrides({}, ours, None)
    empty = check_switch(said.get("allow_empty"), "allow_empty")
    return said.get("columns"), empty, [pair for pair in pairs if pair not in ours]

"""Settings files: strict YAML with environment variables filled in."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from seekr_cl.errors import ConfigError, nearest
from seekr_cl.system import reading

_LARGEST = 1 << 20
"""Bytes of a settings file."""
_MOST_VALUES = 100_000
"""Values of one, those that stand for others by an alias counted each time."""
_DEEPEST = 100
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Args:
            node: The YAML node.
            deep: Build nested values at once.

        Returns:
            The mapping.

        Raises:
            yaml.constructor.ConstructorError: A key is given twice.
        """
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def get_single_node(self) -> yaml.Node | None:
        """Compose the one document, and refuse one that would be larger or deeper than anybody writes.

        Returns:
            Its root.

        Raises:
            yaml.constructor.ConstructorError: It holds itself, is nested too deeply, or has too many values.
        """
        root = super().get_single_node()
        if root is not None:
            _count(root, {}, 0)
        return root


def parse_yaml(text: str) -> Any:
    """Read YAML that may be anybody's.

    Args:
        text: One document.

    Returns:
        What it says.

    Raises:
        ValueError: It is broken, has a key twice, holds itself, or holds too much or a number beyond 64 bits; the
            message begins with the line where it can.
    """
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader underneath
        _require_plain(data)
        return data
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error.context}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # its constructors fail in many ways: an empty !!int is an IndexError
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _count(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """How many values a node stands for, aliases followed; ``known`` holds those of nodes seen, ``None`` meanwhile."""

    def refuse(what: str) -> None:
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)

    if id(node) in known:
        found = known[id(node)]
        if found is None:
            refuse("an alias to what it stands in")
        return found or 0
    if depth > _DEEPEST:
        refuse("nested too deeply")
    known[id(node)] = None
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                total += _count(part, known, depth + 1)
    if total > _MOST_VALUES:
        refuse(f"more than {_MOST_VALUES} values, aliases counted each time")
    known[id(node)] = total
    return total


def _require_plain(value: Any) -> None:
    for part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | set) else ():
        for inner in part:
            _require_plain(inner)
    if type(value) is int and abs(value) > reading.LARGEST_NUMBER:
        raise ValueError(f"the number {str(value)[:20]}... is beyond 64 bits")


def read_yaml(path: Path, key: str = "tasks") -> dict[Any, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: The file.
        key: One that such a file would have, for the error message.

    Returns:
        The mapping, variables not filled in yet.

    Raises:
        ConfigError: The file is missing, not UTF-8, broken, or no mapping; the message names the line where it can.
    """
    try:
        text = reading.read_text(path, _LARGEST)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        names = (entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else ()
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); check the path{nearest(path.name, names)}"
        ) from None
    try:
        data = parse_yaml(text)
    except ValueError as error:
        line, sign, reason = str(error).partition(": ")
        line, reason = (f" {line}", reason) if sign and line.startswith("line ") else ("", str(error))
        raise ConfigError(f"{path}{line}: invalid YAML ({reason}); fix it") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the top level must be a mapping; write keys such as '{key}:' and what is theirs")
    return data


def expand(value: Any, where: str) -> Any:
    """Fill ``${VAR}`` and ``${VAR:-default}`` into every string of a value.

    Args:
        value: A string, a list or mapping of values, or anything else, which is returned as it is.
        where: The file and key, for error messages.

    Returns:
        The value with its variables filled in.

    Raises:
        ConfigError: A variable is not set and has no default.
    """
    if isinstance(value, dict):
        return {key: expand(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, f"{where} item {number}") for number, item in enumerate(value, 1)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name)
        if default is not None:
            return found or default  # as in a shell, an empty variable takes the default as well
        if found is None:
            raise ConfigError(f"{where}: variable {name} is not set; set it or write ${{{name}:-default}}")
        return found

    return _VARIABLE.sub(fill, value)

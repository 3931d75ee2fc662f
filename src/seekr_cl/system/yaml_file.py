"""Settings files: strict YAML with environment variables filled in."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from seekr_cl.errors import ConfigError, nearest
from seekr_cl.system.utf8 import decoded

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
        text = decoded(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        names = (entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else ()
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); check the path{nearest(path.name, names)}"
        ) from None
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader underneath
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: broken YAML ({error.problem or error.context}); mend it") from None
    except Exception as error:  # its constructors fail in many ways: an empty !!int is an IndexError
        raise ConfigError(f"{path}: broken YAML ({' '.join(str(error).split())[:200]}); mend it") from None
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

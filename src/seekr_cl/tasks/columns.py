"""``columns``: which of a file's columns a record's keys are made of, or templates of several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.tasks.values import kind_of

KEYS = (
    *("prompt", "completion", "answer", "messages", "conversations", "instruction", "input", "output", "text"),
    *("references", "tools", "system", "chat_template_kwargs"),
)
"""Whatever a record of some format may hold."""

_EXAMPLE = "columns: {prompt: 'Question: {question}', completion: answer}"


@dataclass(frozen=True, slots=True)
class Columns:
    """A checked mapping.

    Attributes:
        parts: For each key a column's name, or a template as pairs of literal text and a column's name.
    """

    parts: dict[str, str | tuple[tuple[str, str | None], ...]]

    @classmethod
    def read(cls, value: Any, where: str = "columns") -> "Columns | None":
        """Check a mapping.

        Args:
            value: From a record's key to a column, or to a template with ``{column}`` in it; ``{{`` and ``}}`` are
                braces. ``None`` leaves the columns as they are.
            where: What error messages call it.

        Returns:
            The mapping; ``None`` for ``None``.

        Raises:
            ConfigError: It is not a mapping, names an unknown key, or a template cannot be read.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(f"{where}: must map keys to columns, e.g. {_EXAMPLE}; not {value!r}")
        parts: dict[str, str | tuple[tuple[str, str | None], ...]] = {}
        for key, column in value.items():
            if key not in KEYS:
                raise ConfigError(f"{where}: unknown key {key!r}; use {', '.join(KEYS)}{nearest(str(key), KEYS)}")
            if not isinstance(column, str) or not column:
                raise ConfigError(f"{where}: {key} must be a column's name or a template, not {column!r}")
            parts[key] = _template(column, f"{where}: {key}") if "{" in column or "}" in column else column
        return cls(parts)

    @property
    def names(self) -> list[str]:
        """Every column that is read."""
        found = []
        for part in self.parts.values():
            found += [part] if isinstance(part, str) else [name for _, name in part if name is not None]
        return list(dict.fromkeys(found))

    def check(self, present: Iterable[str], label: str) -> None:
        """Make sure that the data has the columns.

        Args:
            present: All columns of the file.
            label: The file, for the message.

        Raises:
            DataError: One is missing; it names the nearest.
        """
        known = [str(name) for name in present]
        for name in self.names:
            if name not in known:
                held = ", ".join(known) or "none"
                raise DataError(f"{label}: columns: no column {name!r} (there are {held}){nearest(name, known)}")

    def apply(self, row: Any, where: str) -> tuple[Any, tuple[str, ...]]:
        """Rename a record's columns and fill in its templates.

        Args:
            row: The record as read.
            where: The file and row, for error messages.

        Returns:
            The record by its new keys, and the columns that nothing is made of.

        Raises:
            DataError: A template's column is missing, null, or neither text nor a whole number.
        """
        if not isinstance(row, Mapping):
            return row, ()
        made: dict[str, Any] = {}
        for key, part in self.parts.items():
            if isinstance(part, str):
                made[key] = row.get(part)
                if key == "references" and isinstance(made[key], str):
                    made[key] = [made[key]]
                continue
            made[key] = "".join(text + ("" if name is None else _cell(row, name, where)) for text, name in part)
        names = self.names
        return made, tuple(str(key) for key in row if key not in names and row[key] is not None)


def _cell(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return value
    # Of a whole number there is one way to write it; of 0.1 or a date there are several.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise DataError(
            f"{where}: column {name!r} is missing or null and a template names it; fill it or remove the row"
        )
    raise DataError(f"{where}: column {name!r} must be a string to go into a template, not {kind_of(value)}")


def _template(text: str, where: str) -> tuple[tuple[str, str | None], ...]:
    found: list[tuple[str, str | None]] = []
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            if name is not None and (not name or spec or conversion):
                raise ValueError("write {column} and nothing else between the braces")
            found.append((literal, name))
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is not a template ({error}); write literal braces as {{{{ }}}}") from None
    if not any(name for _, name in found):
        raise ConfigError(f"{where}: {text!r} names no column; write {{column}}")
    return tuple(found)

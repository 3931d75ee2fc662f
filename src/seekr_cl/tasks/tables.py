"""Tables that came as something else than one record a row, and what a table's columns do to nested values."""

from collections.abc import Mapping
from typing import Any

from seekr_cl.errors import DataError

STRUCTURED = ("messages", "conversations", "references", "tools", "chat_template_kwargs", "prompt", "completion")
"""Keys whose value may be a list or an object."""


def require_records(data: Mapping[str, Any], where: str) -> None:
    """Refuses a whole table written as one JSON object, which would be read as one record.

    Args:
        data: the object.
        where: the file, for the message.

    Raises:
        DataError: naming the shape it has and how to write records instead.
    """
    keys, values = set(data), list(data.values())
    if {"columns", "data"} <= keys or {"schema", "data"} <= keys:
        raise DataError(f"{where}: is a DataFrame's 'split' or 'table' JSON; write records: {_PANDAS}")
    if values and all(isinstance(one, Mapping) and one and all(map(_is_index, one)) for one in values):
        raise DataError(f"{where}: is column-wise JSON (one object a column, not a row); write records: {_PANDAS}")
    lists = [one for one in values if isinstance(one, list)]
    nested = any(isinstance(item, Mapping) for one in lists for item in one)
    if len(values) > 1 and len(lists) == len(values) and len({len(one) for one in lists}) == 1 and not nested:
        raise DataError(f"{where}: is column-wise JSON (one list a column, not a row); write records: {_PANDAS}")
    if len(values) == 1 and lists and lists[0] and all(isinstance(item, Mapping) for item in lists[0]):
        key = next(iter(data))
        if key not in STRUCTURED:
            raise DataError(f"{where}: its records lie under the key {key!r}; make that list the top level")


_PANDAS = "df.to_json(path, orient='records', lines=True)"


def _is_index(key: str) -> bool:
    return key.isdecimal()


def without_nulls(rows: list[Any]) -> list[Any]:
    """Rows of a typed table without the nulls that its types put into nested objects.

    Arrow gives every object of a column every key that any of them has, so a turn gets a null ``tool_calls`` and a
    tool's parameters those of all other tools; a template would write them out. A key that was null before cannot be
    told from one that was not there.

    Args:
        rows: as they were read; changed in place.

    Returns:
        The rows.
    """
    for row in rows:
        if isinstance(row, dict):
            for key in STRUCTURED:
                if isinstance(row.get(key), dict | list) and key != "references":
                    row[key] = _stripped(row[key])
    return rows


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(item) for key, item in value.items() if item is not None}
    return [_stripped(item) for item in value] if isinstance(value, list) else value

"""Rows that are already in Python: a list of dicts, or a data set of the library ``datasets``."""

from collections.abc import Mapping, Sequence
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.tasks.tables import without_nulls


def is_rows(source: Any) -> bool:
    """Whether a source of a task is rows and not a place where they are."""
    return isinstance(source, list | tuple) or hasattr(source, "to_list") or _is_splits(source)


def splits_of(source: Any) -> dict[str, Any]:
    """The splits by name, not read yet: those of a ``DatasetDict``, or everything as ``train``.

    Args:
        source: a list of records, a ``datasets.Dataset``, or a ``DatasetDict``.
    """
    return {str(name): split for name, split in source.items()} if _is_splits(source) else {"train": source}


def rows_of(split: Any) -> list[Any]:
    """The records of one split; a list of the caller's is left as it is.

    Args:
        split: a list of records or a ``datasets.Dataset``.

    Raises:
        DataError: if there are none, or a record is not a mapping.
    """
    if hasattr(split, "to_list"):
        return without_nulls(split.to_list())
    rows = list(split)
    if not rows:
        raise DataError("the rows are empty; give at least one record such as {'prompt': ..., 'completion': ...}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number} is a {type(row).__name__}, not a record; give dicts such as "
                "{'prompt': ..., 'completion': ...}"
            )
    return rows


def _is_splits(source: Any) -> bool:
    """Whether it is a ``DatasetDict``: a mapping whose values are rows."""
    values: Sequence[Any] = list(source.values()) if isinstance(source, Mapping) else []
    return bool(values) and all(hasattr(value, "to_list") for value in values)

"""Rows of JSON, JSONL, CSV and Parquet files, exactly as written, with errors that name file and line.

Parquet goes through pyarrow, on which ``datasets`` stands as well: for one small file its cache and builders cost 30
to 100 ms. JSON and CSV go through Python's own readers: type inference silently turns the answer "2020-01-01" into a
date, "2" into a number when another row holds one, and half a surrogate pair into nothing (measured with datasets 5.2),
pandas repairs a malformed CSV cell by dropping characters of it, and a library that trains on text must read the text
that is there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError, nearest
from seekr_cl.system import reading
from seekr_cl.system.utf8 import BOM, decoded
from seekr_cl.tasks.csv_file import parse_csv
from seekr_cl.tasks.tables import STRUCTURED, require_records, without_nulls

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class RepeatedKeyError(ValueError):
    """A JSON object holds a key twice, and only the last of the two would be kept."""


def read_rows(path: Path) -> list[Any]:
    """Read every row of one data file.

    Args:
        path: A ``.json`` (list of records), ``.jsonl``, ``.csv`` or ``.parquet`` file.

    Returns:
        The rows in file order; what they hold is not checked yet.

    Raises:
        DataError: The file is missing, unreadable, empty, broken, or of an unknown kind.
    """
    require_exists(path)
    readers: dict[str, Callable[[Path], list[Any]]] = {
        ".json": read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: holds no rows; add examples or remove the file")
    return rows


def require_exists(path: Path) -> None:
    """Complain about a path that is not there, naming what is.

    Args:
        path: A file or folder.

    Raises:
        DataError: Nothing exists at ``path``.
    """
    if path.exists():
        return
    if path.parent.is_dir():
        hint = nearest(path.name, (entry.name for entry in path.parent.iterdir()))
        raise DataError(f"{path}: no such file or folder{hint or '; check the path'}")
    raise DataError(f"{path}: no such file or folder; the folder {path.parent} does not exist either, check the path")


def read_json(path: Path) -> list[Any]:
    """Read a JSON list; a file of one object per line is taken as well, since many such files end in ``.json``.

    Args:
        path: The file.

    Returns:
        The items of the list.

    Raises:
        DataError: The file is not UTF-8, is empty, is invalid JSON, holds a key twice, or its top level is neither a
            list of records nor one record.
    """
    text = _read_text(path)
    try:
        data = _loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _lines(path, text)
        raise DataError(
            f"{path} line {error.lineno}: invalid JSON ({error.msg}, column {error.colno}); fix it"
        ) from None
    except RepeatedKeyError as error:
        raise DataError(f"{path}{_row_of(text)}: {error}; keep one") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: unreadable JSON ({_brief(error)}); fix it") from None
    if isinstance(data, dict):
        require_records(data, str(path))
        return [data]
    if not isinstance(data, list):
        raise DataError(f"{path}: the top level must be a list of records; wrap the records in [ ]")
    return data


def _read_jsonl(path: Path) -> list[Any]:
    return _lines(path, _read_text(path))


def _lines(path: Path, text: str) -> list[Any]:
    rows = []
    # Not splitlines(): U+2028 and its like may stand inside a JSON string and end no line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_loads(line))
        except RepeatedKeyError as error:
            raise DataError(f"{path} row {len(rows) + 1}: {error}; keep one") from None
        except (RecursionError, ValueError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else _brief(error)
            raise DataError(f"{path} line {number}: invalid JSON ({reason}); each line must be one record") from None
    if len(rows) == 1 and isinstance(rows[0], dict):
        require_records(rows[0], str(path))
    return rows


def _loads(text: str) -> Any:
    reading.require_records(text)
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [key for key, _ in pairs]
        raise RepeatedKeyError(
            f"key {next(key for key in names if names.count(key) > 1)!r} appears twice in one object"
        )
    return data


def _row_of(text: str) -> str:
    """Which row of a JSON list holds a key twice, found by reading its items one after another."""
    decoder, place = json.JSONDecoder(object_pairs_hook=_distinct), text.find("[") + 1
    if not text.lstrip().startswith("["):
        return " row 1"
    row = 1
    while True:
        while text[place : place + 1] in (",", " ", "\t", "\n", "\r"):
            place += 1
        try:
            _, place = decoder.raw_decode(text, place)
        except ValueError:
            return f" row {row}"
        row += 1


def _read_text(path: Path) -> str:
    try:
        raw = reading.read_bytes(path, limit=None)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check that it is a file you may read") from None
    except MemoryError:
        raise DataError(f"{path}: is larger than the memory that is free; split it") from None
    try:
        text = decoded(raw)
    except UnicodeDecodeError as error:
        # The decoder counts from behind a byte order mark, and looking the byte up there would name the wrong line.
        start = error.start + (len(BOM) if raw.startswith(BOM) else 0)
        line = raw.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} line {line}: byte {start} (0x{raw[start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; add examples or remove it")
    return text


def _read_csv(path: Path) -> list[Any]:
    rows = parse_csv(_read_text(path), str(path))
    for number, row in enumerate(rows, 1):
        for key in STRUCTURED:
            cell = row.get(key)
            if not isinstance(cell, str) or key in ("prompt", "completion"):
                continue
            try:
                row[key] = _loads(cell) if cell else None
            except RepeatedKeyError as error:
                raise DataError(f"{path} row {number}: {key!r}: {error}; keep one") from None
            except (RecursionError, ValueError) as error:
                raise DataError(f"{path} row {number}: {key!r} must hold a JSON list ({_brief(error)})") from None
    return rows


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet

    try:
        reading.open_plain(path).close()
        table = pyarrow.parquet.read_table(path)
    except Exception as error:  # whatever arrow raises, the user needs the file and the reason
        raise DataError(f"{path}: cannot be read as parquet ({_brief(error)}); repair it or export it again") from None
    names = table.column_names
    if repeated := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: column {repeated[0]!r} appears twice; remove one")
    try:
        return without_nulls(table.to_pylist())
    except Exception:
        for number in range(len(table)):
            try:
                table.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"{path} row {number + 1}: text is not UTF-8 ({_brief(error)}); fix it") from None
            except Exception as error:
                raise DataError(f"{path} row {number + 1}: cannot be read ({_brief(error)}); fix it") from None
        raise


def _brief(error: BaseException) -> str:
    """Put an error of another library on one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]

"""CSV as RFC 4180 has it: what is not well formed is refused by its line, for whoever mends it changes the text."""

import csv
import io
import re
import sys
import threading
from typing import Any

from seekr_cl.errors import DataError

_SPACE_QUOTE = re.compile(r"\s+\"")
_FIELD = re.compile(r"(?:^|,)(?:\"(?:[^\"]|\"\")*\"|([^,]*))")
_LIMIT = threading.Lock()


def parse_csv(text: str, path: str) -> list[dict[str, Any]]:
    """Rows by the header's names; every cell is text, and a cell that a short row lacks is ``None``.

    Args:
        text: the file's content.
        path: what error messages call it.

    Raises:
        DataError: if a quoted cell goes on after its closing quote or never closes, a cell begins with a space before
            its quote, a row has more cells than the header, or two columns have one name; the message names the line.
    """
    lines = _cells(text, path)
    if not lines:
        return []
    number, header = lines[0]
    if repeated := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{path} line {number}: column {repeated[0]!r} appears twice; remove one")
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        shown = {"\t": "a tab"}.get(other, f"'{other}'")
        raise DataError(f"{path} line {number}: the columns are separated by {shown}; separate them by commas")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            raise DataError(
                f"{path} line {number}: {len(cells)} fields are more fields than the {len(header)} the header names; "
                'put quotes (") around a cell that holds a comma'
            )
        rows.append(dict(zip(header, [*cells, *[None] * (len(header) - len(cells))])))
    return rows


def _cells(text: str, path: str) -> list[tuple[int, list[str]]]:
    """Every row that is not blank, with the line on which it begins."""
    found: list[tuple[int, list[str]]] = []
    lines = io.StringIO(text, newline="")
    with _LIMIT:
        # A process-wide setting, for the default of 128 KiB is less than one long document.
        former = csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))
        try:
            reader = csv.reader(lines, strict=True)
            line, place = 1, 0
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return found
                except csv.Error as error:
                    raise DataError(f"{path} line {line}: {_reason(error)}") from None
                if any(_SPACE_QUOTE.match(cell) for cell in cells):
                    _refuse_spaced(text[place : lines.tell()], path, line)
                if cells:
                    found.append((line, cells))
                line, place = reader.line_num + 1, lines.tell()
        finally:
            csv.field_size_limit(former)


def _refuse_spaced(raw: str, path: str, line: int) -> None:
    """Refuses a space before a quote: the quotes would become text. Within a quoted cell both are text."""
    for field in _FIELD.finditer(raw):
        if _SPACE_QUOTE.match(field[1] or ""):
            raise DataError(
                f"{path} line {line}: a space precedes the quote of {field[1].strip()[:40]!r}; remove the space"
            )


def _reason(error: csv.Error) -> str:
    said = str(error)
    if "expected after" in said:
        return 'after the closing quote (") of a cell comes more text; double the quotes inside a cell ("")'
    if "unexpected end" in said:
        return 'EOF inside a quoted cell; add its closing quote (")'
    return f"not well-formed CSV ({said}); export it again"

"""What transformers says while it loads a model: a table on stderr, for which a line of this library's may stand."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_LOGGER = "transformers.modeling_utils"
_TITLE = "LOAD REPORT"
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_ROW = re.compile(r"^(\S+)\s*\|\s*(MISMATCH|CONVERSION)\b", re.MULTILINE)
_SHOWN = 3
_WHAT = {"MISMATCH": "have other shapes than config.json says", "CONVERSION": "cannot be converted"}


@dataclass
class LoadReport:
    """Reports that were held back.

    Attributes:
        records: of the logger, in order.
    """

    records: list[logging.LogRecord] = field(default_factory=list)

    def reason(self) -> str | None:
        """The weights for which a model was refused, in one line; ``None`` if no report names any."""
        text = _STYLE.sub("", "\n".join(record.getMessage() for record in self.records))
        rows = _ROW.findall(text)
        if not rows:
            return None
        kind = rows[0][1]
        names = [name for name, status in rows if status == kind]
        more = ", ..." if len(names) > _SHOWN else ""
        return f"{len(names)} of its weights ({', '.join(names[:_SHOWN])}{more}) {_WHAT[kind]}"

    def show(self) -> None:
        """Lets them go out after all."""
        for record in self.records:
            logging.getLogger(_LOGGER).handle(record)


@contextmanager
def held_back() -> Iterator[LoadReport]:
    """Holds back transformers' reports for the length of a ``with`` block; all else that it logs goes out."""
    found = LoadReport()

    def passes(record: logging.LogRecord) -> bool:
        if _TITLE not in record.getMessage():
            return True
        found.records.append(record)
        return False

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(passes)
    try:
        yield found
    finally:
        logger.removeFilter(passes)

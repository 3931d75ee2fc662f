"""Downloading one archive over http."""

import hashlib
import http.client
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from seekr_cl.errors import DataError, OutputError
from seekr_cl.system.locks import hold
from seekr_cl.system.removal import is_made, own_folder, remove_made
from seekr_cl.tasks.benchmarks.archives import LARGEST_TOTAL

_CHUNK = 1 << 20
_PREFIX = "seekr-download-"
_PATIENCE = 60
"""Seconds without a byte."""


def is_url(source: str) -> bool:
    """Whether it is to be downloaded."""
    return urlsplit(source).scheme in ("http", "https")


@contextmanager
def downloaded(url: str, on_bytes: Callable[[int, int | None], None]) -> Iterator[Path]:
    """A URL's content as a file, removed again afterwards.

    Args:
        url: ``http`` or ``https``.
        on_bytes: called with the bytes so far and how many there will be, if the server says.

    Yields:
        The file.

    Raises:
        DataError: if it cannot be had whole.
        OutputError: if the disk is full.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{uuid.uuid4().hex}"
    with hold(folder, "download"), own_folder(folder):
        path = folder / "archive"
        try:
            _get(url, path, on_bytes)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
            raise DataError(f"{url}: cannot be downloaded ({reason}); check the address and the connection") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); free space or set TMPDIR") from None
        yield path


def _remove_abandoned(above: Path) -> None:
    """What killed downloads have left: nobody holds it any more."""
    for folder in above.glob(f"{_PREFIX}*"):
        if is_made(folder):
            with suppress(OutputError), hold(folder, "download"):
                remove_made(folder)


def file_sha256(path: Path) -> str:
    """A file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _get(url: str, path: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "seekr-cl"})
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer, open(path, "wb") as file:
        length = answer.headers.get("Content-Length")
        expected = int(length) if length is not None else None
        size = 0
        while chunk := answer.read(_CHUNK):
            size += len(chunk)
            if size > LARGEST_TOTAL:
                raise DataError(f"{url}: more than {LARGEST_TOTAL} bytes; no benchmark is that large")
            file.write(chunk)
            on_bytes(size, expected)
    if expected is not None and size != expected:
        raise DataError(f"{url}: {size} of {expected} bytes came; try again")

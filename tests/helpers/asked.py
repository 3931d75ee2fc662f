"""A process of a zygote that calls what it is asked to, call after call: for what is chosen before an import."""

import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import zygote

INTERPRETED = {"TRITON_INTERPRET": "1"}
"""Of a zygote in whose children Triton interprets; it asks while it is imported."""


class Asked:
    """One such process.

    Args:
        connection: to it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of a module gives there.

        Raises:
            AssertionError: with the traceback, if it fails.
        """
        self._connection.send((function, arguments))
        given, failure = self._connection.recv()
        assert failure is None, failure
        return given


@contextmanager
def asked(environment: Mapping[str, str] | None = None, setting: Mapping[str, str] | None = None) -> Iterator[Asked]:
    """Starts one as long as the block lasts; the arguments are those of ``zygote.start``."""
    with tempfile.TemporaryDirectory() as folder, Listener(str(Path(folder) / "socket")) as listener:
        chosen = {**(setting or {}), **(environment or {})}
        process = zygote.start("asked:serve", listener.address, environment=chosen, setting=setting)
        try:
            with listener.accept() as connection:
                yield Asked(connection)
        finally:
            process.close()


def serve(address: str) -> int:
    """That process, until whoever asks has gone."""
    with Client(address) as connection:
        while True:
            try:
                function, arguments = connection.recv()
            except EOFError:
                return 0
            try:
                answer = function(*arguments), None
            except BaseException:
                answer = None, traceback.format_exc()
            connection.send(answer)

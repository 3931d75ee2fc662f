"""SIGTERM and Ctrl-C: stop requests, honored at the next checkpoint.

Commands install the handlers; code that embeds the library keeps its own. Work calls ``raise_if_stop_requested`` where
its state is saved. A second Ctrl-C does not wait.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_requested: int | None = None


class Stopped(BaseException):
    """The process was asked to stop and has saved what it had; like ``KeyboardInterrupt`` no error.

    Attributes:
        code: exit code of the process: 128 and the signal's number, so 143 after SIGTERM and 130 after Ctrl-C.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


def stop_requested() -> int | None:
    """The signal that asked to stop, if one did; asked in any process of a training, all of them hear it."""
    from seekr_cl.distributed import collectives  # the command line answers --help without waiting for torch

    return collectives.all_reduce_max(_requested or 0) or None


def raise_if_stop_requested() -> None:
    """Raises ``Stopped`` if a signal asked to; called where everything up to here is on disk."""
    asked = stop_requested()
    if asked is not None:
        raise Stopped(asked)


def raise_here_if_stop_requested() -> None:
    """Raises ``Stopped`` if this process got the signal; the others learn of it at their next ``stop_requested``."""
    if _requested is not None:
        raise Stopped(_requested)


@contextmanager
def graceful() -> Iterator[None]:
    """Turns the first SIGTERM or Ctrl-C into a stop request; a second Ctrl-C interrupts at once."""
    global _requested

    def handle(signum: int, frame: FrameType | None) -> None:
        global _requested
        if _requested is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        _requested = signum

    former = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    _requested = None
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
        _requested = None

"""How many files a memory holds open: a few, however many tasks it has."""

import os
import resource
import weakref
from collections import OrderedDict
from typing import Protocol

from seekr_cl.errors import ConfigError

_MOST = 64
_SHARE = 8
_OTHERS = 32
"""Files that a training has open beside the memory's: model, data, log, checkpoint."""


class Closable(Protocol):
    """Something that can let go of its files and opens them again when it needs them."""

    def let_go(self) -> None:
        """Lets go of them."""


class Pool:
    """The tasks whose two files are open: those read last.

    Args:
        limit: how many; default ``tasks_open``.

    Attributes:
        newest: the id of the task read last, which need not be noted again.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.newest: int | None = None
        self._held: OrderedDict[int, weakref.ref[Closable]] = OrderedDict()

    def used(self, one: Closable) -> None:
        """Notes that a task's files are open and being read, and closes those of the task read longest ago."""
        # Single operations on the dictionary, so that threads need no lock, which a fork could leave closed for ever.
        self._held.pop(id(one), None)
        self._held[id(one)] = weakref.ref(one)
        self.newest = id(one)
        limit = self.limit or tasks_open()
        while len(self._held) > limit:
            try:
                _, oldest = self._held.popitem(last=False)
            except KeyError:
                return
            found = oldest()
            if found is not None:
                found.let_go()


def tasks_open() -> int:
    """Of how many tasks the files stay open: 64, or fewer where the process may not open many files."""
    limit = _limit()
    return _MOST if limit is None else max(2, min(_MOST, limit // _SHARE))


def require_open_files() -> None:
    """Makes sure that the process may open as many files as a training needs.

    Raises:
        ConfigError: saying the limit and how to raise it.
    """
    limit, needed = _limit(), 2 * tasks_open() + _OTHERS
    if limit is not None and limit - _open_now() < needed:
        raise ConfigError(
            f"open files: this process may open {limit} and has {_open_now()} open already; training needs {needed} "
            "more, raise the limit ('ulimit -n 1024')"
        )


def _limit() -> int | None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _open_now() -> int:
    for place in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(place))
        except OSError:
            continue
    return 0


POOL = Pool()

"""Settings of the memory."""

from dataclasses import dataclass
from typing import ClassVar

from seekr_cl.memory.budget import parse_bytes
from seekr_cl.settings import Settings


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Settings):
    """How large the memory may become.

    Attributes:
        max_bytes: of all samples with their texts and signals: a number of bytes or text such as 500MB, 2GB or 1.5GiB;
            beyond it every task gives up samples until all have about as many. Default no limit.
    """

    section: ClassVar[str] = "memory"

    max_bytes: int | str | None = None

    def check(self) -> None:
        """The size can be read."""
        self.limit()

    def limit(self) -> int | None:
        """The limit in bytes."""
        return None if self.max_bytes is None else parse_bytes("memory.max_bytes", self.max_bytes)

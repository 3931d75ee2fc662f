"""Settings of the memory."""

from dataclasses import dataclass, fields
from typing import ClassVar

from seekr_cl.memory.budget import parse_bytes
from seekr_cl.placement import declare, under
from seekr_cl.settings import Settings
from seekr_cl.system.modes import parse_mode


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Settings):
    """How large the memory may become, and who may read it.

    Attributes:
        max_bytes: of all samples with their texts and signals: a number of bytes or text such as 500MB, 2GB or 1.5GiB;
            beyond it every task gives up samples until all have about as many. Default no limit.
        mode: of the files that hold texts, as chmod takes it: the memory's, checkpoints' and predictions'. By default
            their owner alone reads them; 0640 lets the group, 0644 everybody. Folders made for them can be entered by
            whoever may read the files.
    """

    section: ClassVar[str] = "memory"
    example: ClassVar[str] = "max_bytes: 500MB"
    aside: ClassVar[str] = "its folder is named with --memory"

    max_bytes: int | str | None = None
    mode: int | str = "0600"

    def check(self) -> None:
        """Size and mode can be read."""
        self.limit()
        self.file_mode()

    def file_mode(self) -> int:
        """The mode as a number."""
        return parse_mode("memory.mode", self.mode)

    def limit(self) -> int | None:
        """The limit in bytes."""
        return None if self.max_bytes is None else parse_bytes("memory.max_bytes", self.max_bytes)


declare("memory", lambda: [one.name for one in fields(MemoryConfig)], under("memory"))

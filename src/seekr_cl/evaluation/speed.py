"""How fast answers were generated."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from seekr_cl.distributed import collectives


@dataclass(slots=True)
class Speed:
    """What was generated, and the time that took.

    Attributes:
        new_tokens: generated, ends of answers included; those that were generated twice count once.
        seconds: of generation, the passes over the prompts included.
    """

    new_tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Adds the time of a ``with`` block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def of_all(self) -> "Speed":
        """All processes' tokens, in the time of the slowest; every process has to ask."""
        parts = collectives.all_gather_object([self.new_tokens, self.seconds])
        return Speed(sum(tokens for tokens, _ in parts), max(seconds for _, seconds in parts))

    def to_json(self) -> dict[str, Any]:
        """As score files hold it; empty where nothing was generated."""
        if not self.new_tokens or not self.seconds:
            return {}
        rate = round(self.new_tokens / self.seconds, 1)
        return {"new_tokens": self.new_tokens, "seconds": round(self.seconds, 2), "tokens_per_second": rate}


def line(timing: dict[str, Any]) -> str:
    """What ``Speed.to_json`` says, for a person; empty where nothing was generated."""
    if not timing:
        return ""
    return (
        f"generated {timing['new_tokens']} tokens in {timing['seconds']:.1f} s "
        f"({timing['tokens_per_second']:.1f} tokens per second)"
    )

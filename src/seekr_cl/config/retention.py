"""Settings of probing: how well a model still knows the memory's samples, before, during and after a learning."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from seekr_cl.errors import ConfigError
from seekr_cl.settings import Ge, Hint, Le, Settings, setting

SAMPLES = 32
"""Of each task, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class RetentionConfig(Settings):
    """What is watched of old tasks while a new one is learned, and what is done about it.

    A probe asks how probable the model finds the stored answers, as the geometric mean over an answer's tokens in
    percent, and whether it would write them exactly.

    Attributes:
        samples: stored samples of each task that are probed before and after a learning; 0 probes none. Default 32 in
            seekr learn; seekr run, which tests every task after each, probes where this or probe_every is set.
        probe_every: optimizer steps from one probe during training to the next; default none during training.
        max_drop: points of mean answer probability that a task may lose.
        on_drop: what happens once a task has surely lost more: ``warn``; ``more_replay``, one more pass over that
            task's samples in steps of their own after each such probe; ``stop``, which ends training with the state
            saved and nothing replaced.
    """

    section: ClassVar[str] = "retention"

    samples: Annotated[int | None, Ge(0)] = None
    probe_every: Annotated[int | None, Ge(1), Hint("leave it out for no probes during training")] = None
    max_drop: Annotated[float, Ge(0), Le(100)] = setting(2.0, needs={"probe_every": ...})
    on_drop: Literal["warn", "more_replay", "stop"] = setting("warn", needs={"probe_every": ...})

    def check(self) -> None:
        """Whoever probes needs samples."""
        if self.probe_every is not None and self.samples == 0:
            raise ConfigError("retention.samples: 0 leaves retention.probe_every nothing to probe; raise it")

    def count(self, evaluated: bool) -> int:
        """Samples of each task that are probed; ``evaluated`` if its tests are scored after the learning anyway."""
        if self.samples is not None:
            return self.samples
        return 0 if evaluated and self.probe_every is None else SAMPLES

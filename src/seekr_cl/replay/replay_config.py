"""Settings of replay: what is kept of a task, and when it comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from seekr_cl.errors import ConfigError
from seekr_cl.placement import declare, under
from seekr_cl.replay.selection import CHOICES
from seekr_cl.settings import Ge, Gt, Hint, Le, Lt, OneOf, Settings, build, setting

TIMING = frozenset({"every", "share", "cadence", "clock", "day_steps", "step"})
"""Settings that say when replay comes; they replace a preset's or a paper's as a group."""
KEEPING = ("ratio", "samples", "choice")
"""Settings that say what is kept, not when it comes back."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Settings):
    """What is kept of each task and how often it comes back.

    Attributes:
        ratio: share of a task's training examples that is kept; at least one, unless the ratio is 0.
        samples: how many examples to keep instead of a ratio.
        every: a replay batch after every so many new batches.
        share: replay batches as a share of all batches.
        cadence: without ``every`` and ``share``: ``volume`` interleaves by the ratio of the volumes; ``official`` uses
            the official code's quotient of batch counts; ``forgetting_curve`` replays the whole memory after 1, 2, 4,
            7, 15 and 30 thirtieths of the new batches (FOREVER).
        clock: under ``forgetting_curve``: ``steps`` divides the new batches into 30 days; ``updates`` measures days by
            how far the weights have moved (FOREVER).
        day_steps: optimizer steps that make the first day by ``clock: updates``.
        batch_size: samples in a replay batch; default the training batch size.
        choice: which examples are kept: ``random`` (seeded), ``first`` (official code), ``balanced`` over classes or
            completion lengths, ``herding`` on the trained model's features (iCaRL), the highest ``loss`` before it.
        task_weights: ``equal`` replays every sample alike; ``similarity`` replays old tasks by their distance from the
            new one (InsCL).
        sample_weights: within a task ``equal``; by the ``information`` of its prompt (InsCL's InsInfo, of words), or by
            ``surprise``, the loss of its completion under the model before the task (SuRe).
        step: ``separate`` steps for replay (official code) or ``joint`` ones with the new batch (eq. 13).
        over_tasks: ``mean`` over a replay batch whatever tasks it is of (official code), or the ``sum`` over old tasks
            of eq. 2, 3 and 12: replay terms weigh as many times as much as there are old tasks, which come equally
            often.
    """

    section: ClassVar[str] = "replay"
    example: ClassVar[str] = "ratio: 0.02"

    ratio: Annotated[float, Ge(0), Le(1), Hint("0.01 keeps one example in a hundred")] = 0.01
    samples: Annotated[int | None, Ge(0), Hint("0 keeps nothing")] = None
    every: Annotated[int | None, Ge(1), Hint("1 is one replay batch after each new batch")] = None
    share: Annotated[float | None, Gt(0), Lt(1), Hint("0.25 is every fourth batch")] = None
    cadence: Literal["volume", "official", "forgetting_curve"] = "volume"
    clock: Literal["steps", "updates"] = setting("steps", needs={"cadence": "forgetting_curve"})
    day_steps: Annotated[int, Ge(1)] = setting(24, needs={"clock": "updates"})
    batch_size: Annotated[int | None, Ge(1)] = None
    choice: Annotated[str, OneOf(CHOICES)] = "random"
    task_weights: Literal["equal", "similarity"] = "equal"
    sample_weights: Literal["equal", "information", "surprise"] = "equal"
    step: Literal["separate", "joint"] = "separate"
    over_tasks: Literal["mean", "sum"] = "mean"

    def check(self) -> None:
        """What says the same twice."""
        if self.every is not None and self.share is not None:
            raise ConfigError("replay: 'every' and 'share' are two ways to say the same; keep one of them")
        if self.cadence != "volume" and (self.every or self.share or self.step == "joint"):
            raise ConfigError(
                f"replay.cadence: '{self.cadence}' fixes when replay comes; drop every, share and step: joint"
            )

    def count(self, num_examples: int) -> int:
        """How many of a task's examples are kept."""
        if self.samples is not None:
            return min(self.samples, num_examples)
        return min(num_examples, max(1, int(num_examples * self.ratio))) if self.ratio else 0

    def per_new_batch(self, num_new: int, num_replay: int) -> float:
        """Replay batches for each new batch, given the number of batches of both kinds in an epoch."""
        if self.every is not None:
            return 1 / self.every
        if self.share is not None:
            return self.share / (1 - self.share)
        return num_replay / num_new


declare("replay", lambda: [one.name for one in fields(ReplayConfig)], under("replay"))


def read_replay(given: Mapping[str, Any], preset: Mapping[str, Any], paper: Mapping[str, Any]) -> ReplayConfig:
    """The settings of replay, from what the user set down to the method's paper and the preset.

    Args:
        given: by the user.
        preset: of the preset.
        paper: of the method, where they differ from the library's.

    Raises:
        ConfigError: for an unknown key or a value that cannot be.
    """
    if (preset.keys() | given.keys()) & TIMING:
        paper = {key: value for key, value in paper.items() if key not in TIMING}
    made = build(ReplayConfig, given, defaults={**preset, **paper})
    if "ratio" in given and made.samples is not None:
        raise ConfigError("replay: 'ratio' and 'samples' are two ways to say the same; keep one of them")
    return made

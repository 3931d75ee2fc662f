"""The verdict: what a model learned, what it lost of the old tasks and of general ability, and how sure that is.

``verdict.json`` holds it, in the folder of ``seekr run``, ``seekr evaluate`` or ``seekr learn``. ``verdicts`` makes it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from seekr_cl.errors import DataError
from seekr_cl.evaluation.change import Change, describe
from seekr_cl.system import reading
from seekr_cl.system.sizes import size
from seekr_cl.system.visible import one_line

VERDICT = "verdict.json"
FORMAT = 1
MAX_DROP = 2.0
"""Points that an old task may lose and still counts as kept."""
CONFIDENCE = 0.95
KINDS = {"old": "old task", "skill": "base skill", "general": "general benchmark", "new": "new task"}
OUTCOMES = ("kept", "lost", "unsure", "learned", "not learned")
_NAMED = 4
"""So many tasks are named in a part of the sentence."""


@dataclass(frozen=True, slots=True)
class Line:
    """One task's part of a verdict; scores and changes in points, 0 to 100.

    Attributes:
        task: its name.
        kind: a key of ``KINDS``.
        measure: what was measured, such as a metric's name.
        after: the score of the model that is judged; None if it is not known.
        before: the score before: of an old task right after it was learned; None if it was not measured.
        change: after less before.
        interval: of the change, at the verdict's confidence; None where single answers are not known.
        examples: measured on both sides.
        changed_examples: of them those whose score differs.
        outcome: one of ``OUTCOMES``.
        max_drop: points that this task may lose.
        needed: examples that would settle an ``unsure`` outcome if the change stayed; None if no number would.
        transitions: examples lost and gained, as ``Transitions.to_json``.
        more: further measures by name, such as ``log_likelihood`` and ``kl_to_stored`` of a learning.
    """

    task: str
    kind: str
    measure: str
    after: float | None
    before: float | None = None
    change: float | None = None
    interval: tuple[float, float] | None = None
    examples: int = 0
    changed_examples: int | None = None
    outcome: str = "learned"
    max_drop: float = MAX_DROP
    needed: int | None = None
    transitions: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gained(self) -> bool:
        """Whether an old task surely got better."""
        return self.kind != "new" and self.interval is not None and self.interval[0] > 0

    @classmethod
    def of(cls, task: str, kind: str, measure: str, change: Change, max_drop: float = MAX_DROP, **more: Any) -> Self:
        """The line of a change that was measured."""
        told = describe(change)
        outcome = change.outcome(max_drop)
        if kind == "new":
            outcome = "learned" if change.interval.low > 0 else "not learned"
        needed = change.needed(max_drop) if outcome == "unsure" else None
        low, high = told.pop("interval")
        return cls(
            task=task, kind=kind, measure=measure, interval=(low, high), outcome=outcome, max_drop=max_drop,
            needed=needed, more=more, **told,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """What the learning cost.

    Attributes:
        steps: optimizer steps.
        more_steps: the share of steps beyond those that the new examples alone would have had; None if not known.
        memory_bytes: of the replay memory.
    """

    steps: int | None = None
    more_steps: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is kept, lost and learned.

    Attributes:
        lines: a task each: old ones first, then base skills and general ability, then what is new.
        measured_on: ``tests``, or ``memory`` where the memory's own samples stand in for tests.
        max_drop: points that an old task may lose.
        confidence: of the intervals.
        mean: mean change of the old tasks, and its interval; None without them.
        cost: of the learning.
        notes: what a reader must know of how this was measured.
    """

    lines: tuple[Line, ...]
    measured_on: str = "tests"
    max_drop: float = MAX_DROP
    confidence: float = CONFIDENCE
    mean: tuple[float, tuple[float, float]] | None = None
    cost: Cost = Cost()
    notes: tuple[str, ...] = ()

    def of_kind(self, *kinds: str) -> list[Line]:
        """The lines of some kinds."""
        return [line for line in self.lines if line.kind in kinds]

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        parts = [self._kept("old", "old task"), self._kept("skill", "base skill")]
        parts.append(self._kept("general", "general benchmark"))
        guarded = self.of_kind("old", "skill", "general")
        lost = [line for line in guarded if line.outcome == "lost"]
        unsure = [line for line in guarded if line.outcome == "unsure"]
        parts.append(_list("lost", (f"{_short(line.task)} {moved(line)}" for line in lost)))
        parts.append(_list("unsure", (f"{_short(line.task)} {moved(line)}{_needed(line)}" for line in unsure)))
        new = self.of_kind("new")
        parts.append(_list("gained", (f"{_short(one.task)} {moved(one)}" for one in guarded if one.gained)))
        for outcome, head in (("learned", "learned"), ("not learned", "not surely learned")):
            named = (f"{_short(line.task)} {_learned(line)}" for line in new if line.outcome == outcome)
            parts.append(_list(head, named))
        parts.append(_list("format lost", (f"{_short(one.task)} {_format(one)}" for one in guarded if _unformed(one))))
        parts.append(_cost(self.cost))
        told = "; ".join(part for part in parts if part) or "nothing was measured"
        about = " (on the memory's own samples)" if self.measured_on == "memory" else ""
        return told[0].upper() + told[1:] + about

    def to_json(self) -> dict[str, Any]:
        """The content of ``verdict.json``."""
        return {"format": FORMAT, "sentence": self.sentence} | asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = VERDICT) -> Self:
        """The verdict behind a ``verdict.json``.

        Raises:
            DataError: naming the file, if it is none, or of a later version.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}; update seekr-cl")
            lines = tuple(_line(one) for one in content["lines"])
            mean = content["mean"]
            if mean is not None:
                mean = float(mean[0]), _pair(mean[1])
            cost = Cost(**{name.name: content["cost"].get(name.name) for name in fields(Cost)})
            notes = tuple(map(str, content["notes"]))
            level = float(content["max_drop"]), float(content["confidence"])
            return cls(lines, str(content["measured_on"]), *level, mean, cost, notes)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"{source}: not a verdict of this library ({error}); evaluate again") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            DataError: if it is missing or damaged.
        """
        try:
            content = reading.read_json(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as JSON ({error})") from error
        return cls.from_json(content, str(path))

    def _kept(self, kind: str, name: str) -> str:
        lines = self.of_kind(kind)
        if not lines:
            return ""
        kept = sum(line.outcome == "kept" for line in lines)
        drops = {line.max_drop for line in lines}
        within = f"within {points(drops.pop())} points" if len(drops) == 1 else "within what each may lose"
        mean = ""
        if kind == "old" and self.mean is not None and len(lines) > 1:
            mean = f" (mean {signed(self.mean[0])} {span(self.mean[1])})"
        return f"kept: {kept} of {len(lines)} {name}{'s' * (len(lines) != 1)} {within}{mean}"


def points(value: float) -> str:
    """A number of points: a decimal where there is one."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def score_text(score: float | None) -> str:
    """A score in points, or that there is none."""
    return "-" if score is None else points(score)


def signed(value: float) -> str:
    """A change in points."""
    text = points(value)
    return text if text.startswith("-") or text == "0" else f"+{text}"


def span(interval: tuple[float, float] | None) -> str:
    """An interval in brackets."""
    return "" if interval is None else f"[{points(interval[0])}, {points(interval[1])}]"


def moved(line: Line) -> str:
    """A line's change with its interval."""
    return "" if line.change is None else f"{signed(line.change)} {span(line.interval)}".strip()


def _learned(line: Line) -> str:
    return score_text(line.after) + ("" if line.before is None else f" (from {points(line.before)})")


def _unformed(line: Line) -> bool:
    """Whether answers surely lost the form they should have."""
    form = line.more.get("format")
    return form is not None and form["interval"][1] < -line.max_drop


def _format(line: Line) -> str:
    form = line.more["format"]
    return f"{signed(form['change'])} {span((form['interval'][0], form['interval'][1]))}"


def _needed(line: Line) -> str:
    if line.interval is None:
        return " (no answers to compare)"
    return "" if line.needed is None else f" (about {line.needed:,} examples would tell)"


def _short(name: str) -> str:
    return one_line(name, 40)


def _list(head: str, parts: Iterable[str]) -> str:
    told = list(parts)
    if not told:
        return ""
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return f"{head}: {', '.join(told[:_NAMED])}{more}"


def _cost(cost: Cost) -> str:
    parts = []
    if cost.more_steps is not None:
        parts.append(f"{100 * cost.more_steps:.0f}% more steps")
    elif cost.steps is not None:
        parts.append(f"{cost.steps:,} steps")
    if cost.memory_bytes is not None:
        parts.append(size(cost.memory_bytes))
    return f"cost: {', '.join(parts)}" if parts else ""


def _line(content: Mapping[str, Any]) -> Line:
    known = {one.name for one in fields(Line)}
    values = {key: value for key, value in content.items() if key in known}
    if values["kind"] not in KINDS or values["outcome"] not in OUTCOMES:
        raise ValueError(f"kind {values['kind']!r}, outcome {values['outcome']!r}")
    numbers = [values["after"], values.get("before"), values.get("change")]
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError("a score is not a finite number")
    interval = values.get("interval")
    return Line(**values | {"interval": None if interval is None else _pair(interval)})


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)

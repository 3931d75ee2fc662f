"""What the events of a record add up to: where a run is, how fast, and how much time is left of the whole of it.

The line that a command shows while it works and what ``seekr watch`` shows come from here, so they cannot differ.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from seekr_cl.system.run_record import count, is_finite, number

_ENOUGH = 0.02
"""Part of a task's steps, or seconds, after which its speed says something."""
_SECONDS = 2.0
SILENT = 120.0
"""Seconds without an event after which it is worth saying so: events come every ten seconds while steps are made."""


@dataclass(slots=True)
class RunState:
    """Where a run, a learning or an evaluation is.

    Attributes:
        kind: ``run``, ``learning`` or ``evaluation``.
        method: its name.
        tasks: what is learned, in order: one name a stage; of an evaluation what is scored.
        work: how much training each stage has: examples times epochs; of an evaluation prompts.
        tests: prompts of one evaluation; 0 where nothing is evaluated.
        phase: what goes on now; empty between phases.
        task: what it is about.
        number: which stage, from 1; 0 before the first.
        done: steps or prompts done of this phase.
        total: of how many; 0 where they are not counted.
        terms: loss terms by name, of the last log line.
        shares: gradient shares by name.
        tokens_per_second: of the training now, of all processes.
        started: when the command began.
        begun: when the phase began.
        updated: when the last event was written.
        ended: ``done``, ``stopped`` or ``failed`` once it is over, with ``message``.
        message: why it failed.
        rows: scores by task after each stage, 0 being the base model.
    """

    kind: str = ""
    method: str = ""
    tasks: list[str] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    tests: int = 0
    phase: str = ""
    task: str = ""
    number: int = 0
    done: int = 0
    total: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    started: float = 0.0
    begun: float = 0.0
    updated: float = 0.0
    ended: str = ""
    message: str = ""
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    spent: dict[tuple[int, str], float] = field(default_factory=dict)
    """Seconds of every finished phase, by stage."""
    measured: dict[tuple[int, str], float] = field(default_factory=dict)
    """What part of it they are about: less than 1 where it went on from the middle."""
    _first: int = 0
    """``done`` when this process came to the phase: a resumed one begins in the middle."""
    _former: float = 0.0

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> "RunState":
        """The state after these events."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: dict[str, Any]) -> None:
        """Takes in one event; what it does not know, and values of a wrong type, change nothing."""
        known = {
            "begin": self._begin,
            "phase": self._phase,
            "progress": self._progress,
            "training": self._training,
            "log": self._log,
            "scores": self._scores,
            "end": self._end,
        }
        kind = event.get("event")
        self._former, self.updated = self.updated, float(event["time"])
        if kind in known:
            known[kind](event)

    def _begin(self, event: dict[str, Any]) -> None:
        # What was killed had worked until its last event; between then and now nothing did.
        self._close(self._former)
        self.kind, self.method = _text(event.get("kind")), _text(event.get("method"))
        names, work = event.get("tasks"), event.get("work")
        self.tasks = [_text(name) for name in names] if isinstance(names, list) else []
        self.work = [number(one) for one in work] if isinstance(work, list) else []
        self.work += [1.0] * (len(self.tasks) - len(self.work))
        self.tests = count(event.get("tests"))
        self.started, self.ended, self.message = self.updated, "", ""
        self.phase = ""

    def _phase(self, event: dict[str, Any]) -> None:
        self._close(self.updated)
        self.phase, self.task = _text(event.get("phase")), _text(event.get("task"))
        self.number = count(event.get("number"))
        self.done, self.total = count(event.get("done")), count(event.get("total"))
        self._first, self.begun = self.done, self.updated
        if self.phase != "train":
            self.tokens_per_second, self.terms, self.shares = None, {}, {}

    def _close(self, now: float) -> None:
        """Books the seconds of the phase that is over."""
        if not self.phase or self.ended:
            return
        key = self.number, self.phase
        part = self._done_here() if self.total else 1.0
        self.spent[key] = self.spent.get(key, 0.0) + max(0.0, now - self.begun)
        self.measured[key] = min(1.0, self.measured.get(key, 0.0) + part)

    def _training(self, event: dict[str, Any]) -> None:
        self.total = count(event.get("steps"))
        self.done = self._first = count(event.get("done"))
        self.begun = self.updated

    def _progress(self, event: dict[str, Any]) -> None:
        self.done = count(event.get("done"))
        self.total = count(event.get("total")) or self.total
        speed = event.get("tokens_per_second")
        self.tokens_per_second = number(speed) if speed is not None else self.tokens_per_second

    def _log(self, event: dict[str, Any]) -> None:
        values = event.get("values")
        if not isinstance(values, dict):
            return
        numbers = {key: number(value) for key, value in values.items() if isinstance(value, int | float)}
        self.done = count(values["step"]) if is_finite(values.get("step")) else self.done
        terms = {
            key.removeprefix("loss_"): value
            for key, value in numbers.items()
            if key.startswith("loss_") and not key.endswith("_total")
        }
        self.terms = terms or self.terms
        shares = {key.removeprefix("share_"): value for key, value in numbers.items() if key.startswith("share_")}
        self.shares = shares or self.shares

    def _scores(self, event: dict[str, Any]) -> None:
        scores = event.get("scores")
        if isinstance(scores, dict):
            row = {str(task): number(score) for task, score in scores.items()}
            self.rows[count(event.get("number"))] = row

    def _end(self, event: dict[str, Any]) -> None:
        self._close(self.updated)
        self.ended, self.message = _text(event.get("how")) or "done", _text(event.get("message"))
        self.phase = ""

    @property
    def part(self) -> float | None:
        """How much of the phase is done; None where it is not counted."""
        return min(1.0, self.done / self.total) if self.total else None

    def whole(self, now: float) -> float | None:
        """How much of the whole run is done, in time; None while that is not known."""
        left = self.seconds_left(now)
        if left is None:
            return None
        spent = sum(self.spent.values()) + (max(0.0, now - self.begun) if self.phase else 0.0)
        if not math.isfinite(spent + left):
            return None
        return spent / (spent + left) if spent + left > 0 else 1.0

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the whole run is done; None while too little is known to say.

        What is measured of one stage (seconds of training for an example, of evaluation for a prompt, of everything
        else for a task) is taken for those to come.

        Args:
            now: the time.
        """
        if self.ended or not self.tasks:
            return 0.0 if self.ended == "done" else None
        if self.kind == "evaluation":
            rate = self._evaluation_rate(max(0.0, now - self.begun) if self.phase else 0.0)
            if self.answered == 1:
                return 0.0
            left = (rate or 0.0) * (1 - self.answered) * sum(self.work)
            return left if 0 < left < math.inf else None
        current = max(0.0, now - self.begun) if self.phase else 0.0
        trained = {n: self.spent[n, "train"] for n in range(1, len(self.tasks) + 1) if (n, "train") in self.spent}
        work = sum(self.work[n - 1] * self.measured[n, "train"] for n in trained)
        seconds = sum(trained.values())
        here = self._done_here()
        telling = here >= _ENOUGH or current >= _SECONDS or bool(work)
        if self.phase == "train" and 0 < self.number <= len(self.work) and here * self.total >= 1 and telling:
            work, seconds = work + here * self.work[self.number - 1], seconds + current
        if not work:
            return None
        left = seconds / work * self._training_left()
        rate = self._evaluation_rate(current)
        if self.tests:
            if rate is None:
                return None
            left += rate * self._prompts_left()
        left += self._rest_left()
        return left if math.isfinite(left) else None

    def _done_here(self) -> float:
        """The part of the phase that this process has done."""
        return (self.done - self._first) / self.total if self.total else 0.0

    def _training_left(self) -> float:
        if self.number == 0:
            return sum(self.work)
        left = sum(self.work[self.number :])
        own = self.work[self.number - 1] if self.number <= len(self.work) else 0.0
        if self.phase == "train":
            return left + own * (1 - (self.part or 0.0))
        return left + (own if (self.number, "train") not in self.spent else 0.0)

    def _evaluation_rate(self, current: float) -> float | None:
        own = self.kind == "evaluation"
        prompts = sum(
            (self._work_of(key[0]) if own else self.tests) * self.measured[key]
            for key in self.spent
            if key[1] == "evaluate"
        )
        seconds = sum(value for key, value in self.spent.items() if key[1] == "evaluate")
        if self.phase == "evaluate" and self.total:
            prompts, seconds = prompts + self._done_here() * self.total, seconds + current
        return seconds / prompts if prompts else None

    @property
    def answered(self) -> float:
        """How much of an evaluation is done, in prompts."""
        former = sum(self.work[: max(0, self.number - 1)]) + self._work_of(self.number) * (self.part or 0.0)
        return min(1.0, former / sum(self.work)) if sum(self.work) else 0.0

    def _work_of(self, number: int) -> float:
        return self.work[number - 1] if 0 < number <= len(self.work) else 0.0

    def _prompts_left(self) -> float:
        stages = len(self.tasks) - max(0, self.number - 1) + (1 if self.number == 0 else 0)
        if self.number and (self.number, "evaluate") in self.spent:
            stages -= 1
        elif self.phase == "evaluate":
            return self.tests * (stages - (self.part or 0.0))
        elif self.number == 0 and (0, "evaluate") in self.spent:
            stages -= 1
        return float(self.tests * stages)

    def _rest_left(self) -> float:
        """Loading, scoring and writing of the stages to come, as they were."""
        others = {key: value for key, value in self.spent.items() if key[0] and key[1] not in ("train", "evaluate")}
        whole = {key[0] for key in others if (key[0], "train") in self.spent and key[0] != self.number}
        if not whole:
            return 0.0
        mean = sum(value for key, value in others.items() if key[0] in whole) / len(whole)
        own = sum(value for key, value in others.items() if key[0] == self.number)
        after = max(0.0, mean - own) if self.phase != "evaluate" and self.number else 0.0
        return mean * (len(self.tasks) - self.number) + after


def seen_at(state: RunState, now: float) -> float:
    """The time that a run is seen at: of one that gives no sign of life that of its last event."""
    return state.updated if now - state.updated > SILENT else now


def time_text(seconds: float) -> str:
    """A time left, as exactly as it is known."""
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 55:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{max(1, minutes)} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def fields(state: RunState, now: float) -> dict[str, str]:
    """What the line says, by name, the most telling first."""
    found: dict[str, str] = {}
    if state.ended:
        found["phase"] = {"done": "done", "stopped": "stopped; continue with --resume"}.get(state.ended, "failed")
        return found | ({"why": state.message} if state.message else {})
    found["phase"] = state.phase or "starting"
    if len(state.tasks) > 1 and (state.number or state.kind != "evaluation"):
        found["task"] = f"task {state.number} of {len(state.tasks)}" if state.number else "base model"
    if state.task and state.number:
        found["name"] = state.task
    if state.total:
        unit = "step" if state.phase == "train" else "prompt" if state.phase == "evaluate" else "item"
        found["step"] = f"{unit} {state.done:,}/{state.total:,}"
    left = state.seconds_left(now)
    if state.kind != "evaluation" or left != 0:
        found["left"] = "time left not known yet" if left is None else f"{time_text(left)} left"
    if state.terms:
        found["terms"] = " ".join(f"{name} {value:.3g}" for name, value in state.terms.items())
    if len(state.shares) > 1:
        found["share"] = "share " + " ".join(f"{name} {100 * value:.0f}%" for name, value in state.shares.items())
    if state.tokens_per_second:
        found["speed"] = f"{state.tokens_per_second:,.0f} tokens/s"
    return found


def line(state: RunState, now: float) -> str:
    """Phase, task, step, time left of the whole run, loss terms, shares and speed, in one line."""
    return ", ".join(fields(state, now).values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

"""Where a run is: written down for ``seekr watch`` and ``seekr report``, and shown in one line while it goes."""

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback

from seekr_cl.distributed import collectives
from seekr_cl.errors import OutputWarning
from seekr_cl.os_errors import describe
from seekr_cl.system.run_record import append_event
from seekr_cl.system.run_state import RunState, fields, line
from seekr_cl.system.visible import one_line
from seekr_cl.training.progress import console, show_counts, wants_bar

_OFTEN, _SELDOM, _PART = 1.0, 10.0, 200
"""Seconds between two events of progress: at first, at the most, and one in so many parts of the time so far."""
_LINES = 5
_BINS = 500


class Tracker:
    """One run's, or one learning's, progress. In other processes than the first it does nothing.

    Args:
        mode: ``auto``, ``bar``, ``lines`` or ``none``: what is shown; what is written does not depend on it.

    Attributes:
        state: what the events so far add up to.
        number: which stage of a run is going on, from 1.
        logs: folder for the files of TensorBoard, where it is asked for.
        settings: what was last said of learning rate, precision and batch.
    """

    def __init__(self, mode: str = "none") -> None:
        self.mode = mode
        self.state = RunState()
        self.number = 0
        self.logs: Path | None = None
        self.settings = ""
        self._path: Path | None = None
        self._at_training: Path | None = None
        self._waiting: list[dict[str, Any]] | None = []
        self._live: Live | None = None
        self._written = 0.0
        self._line = -1

    def write_to(self, path: Path) -> None:
        """From here on events are written to a file; those that came before are written first."""
        self._path = path
        waiting, self._waiting = self._waiting or [], None
        for event in waiting:
            self._write(event)

    def write_at_training(self, path: Path) -> None:
        """``write_to`` once the steps begin: bad input, which is found before, leaves nothing behind."""
        self._at_training = path

    def begin(self, kind: str, **facts: Any) -> None:
        """The command has begun."""
        self._event("begin", kind=kind, **facts)
        if collectives.is_main() and wants_bar(self.mode) and self._live is None:
            self._live = Live(get_renderable=self._shown, console=console(), transient=True, refresh_per_second=2)
            self._live.start()
            show_counts(self._count)

    def phase(self, name: str, task: str = "", total: int = 0, done: int = 0) -> None:
        """A phase begins, and the former one is over."""
        self._event("phase", phase=name, task=task, number=self.number, total=total, done=done)
        if self._live is not None:
            self._live.refresh()

    def probing(self, task: str, samples: int) -> None:
        """Answers of old tasks and of the new one are asked about, which trains nothing."""
        self.phase("probe", task, samples)
        if self.mode != "none" and self._live is None and collectives.is_main():
            console().print(f"{task}: probing {samples} answers (retention.samples)", soft_wrap=True, markup=False)

    def training(self, task: str, steps: int, done: int, replayed: Sequence[int], bin_steps: int) -> None:
        """The steps begin.

        Args:
            task: what is learned.
            steps: optimizer steps.
            done: how many of them a resumed training has behind it.
            replayed: micro-batches with replay in every bin.
            bin_steps: steps of a bin.
        """
        facts = {"steps": steps, "done": done, "replayed": list(replayed), "bin_steps": bin_steps}
        self._event("training", task=task, number=self.number, **facts)
        self._line = -1
        if self._at_training is not None and self._waiting is not None:
            self.write_to(self._at_training)

    def progress(self, done: int, total: int, tokens_per_second: float | None = None, last: bool = False) -> None:
        """So much of the phase is done; written now and then, and at the end."""
        event: dict[str, Any] = {"event": "progress", "time": time.time(), "done": done, "total": total}
        if tokens_per_second is not None:
            event["tokens_per_second"] = round(tokens_per_second, 1)
        self.state.apply(event)
        now = time.monotonic()
        every = max(_OFTEN, min(_SELDOM, (event["time"] - self.state.started) / _PART))
        if last or now - self._written >= every:
            self._written = now
            self._keep(event)
        if self.state.kind == "evaluation":
            self._say(self.state.answered)

    def log(self, values: Mapping[str, Any], label: str) -> None:
        """The Trainer's log line."""
        self._event("log", values={key: value for key, value in values.items() if _finite(value)})
        state = self.state
        part = state.done * _LINES // max(1, state.total)
        if self.mode == "none" or self._live is not None or not state.terms or part == self._line:
            return
        self._line = part
        if collectives.is_main():
            said = fields(state, time.time())
            rest = [said[key] for key in ("task", "share", "speed", "left") if key in said]
            console().print(
                one_line(f"{label}: step {state.done}/{state.total} {said['terms']}; {', '.join(rest)}", None),
                soft_wrap=True,
                markup=False,
            )

    def _say(self, part: float) -> None:
        """Where nothing is drawn, a line for each of a few parts of the whole."""
        part = int(part * _LINES)
        if self.mode != "none" and self._live is None and part != self._line and collectives.is_main():
            self._line = part
            console().print(one_line(line(self.state, time.time()), None), soft_wrap=True, markup=False)

    def retention(self, step: int, told: str, action: str) -> None:
        """A probe of old tasks has found a drop, and something was done about it."""
        self._event("retention", number=self.number, told=f"step {step}: {told}; {action}")

    def scores(self, scores: Mapping[str, float]) -> None:
        """An evaluation is complete."""
        self._event("scores", number=self.number, task=self.state.task, scores=dict(scores))

    def end(self, how: str = "done", message: str = "") -> None:
        """It is over: ``done``, ``stopped`` or ``failed``."""
        self._event("end", how=how, **({"message": message} if message else {}))
        if self._live is not None:
            show_counts(None)
            self._live.stop()
            self._live = None

    def _event(self, what: str, /, **values: Any) -> None:
        if not collectives.is_main():
            return
        event = {"event": what, "time": round(time.time(), 3), **values}
        self.state.apply(event)
        self._keep(event)

    def _keep(self, event: dict[str, Any]) -> None:
        if not collectives.is_main():
            return
        if self._waiting is not None:
            self._waiting.append(event)
        else:
            self._write(event)

    def _write(self, event: dict[str, Any]) -> None:
        if self._path is None:
            return
        try:
            append_event(self._path, event)
        except OSError as error:
            self._path = None
            warnings.warn(f"{describe(error)}: seekr watch and report will miss it", OutputWarning, stacklevel=2)

    def _count(self, label: str, done: int, total: int) -> None:
        """Something else that is counted, such as embedding examples to choose from: shown, not written."""
        self.state.task, self.state.done, self.state.total = label, done, total

    def _shown(self) -> Text:
        # Names come from data, and a terminal would obey what stands in them.
        return Text(one_line(line(self.state, time.time()), None), no_wrap=True, overflow="ellipsis")


class TrackedTraining(TrainerCallback):
    """Tells a tracker how one task's training goes.

    Args:
        tracker: whom.
        label: what is trained.
        tokens: of every micro-batch, of all processes.
        replays: whether each micro-batch holds replay.
    """

    def __init__(self, tracker: Tracker, label: str, tokens: Sequence[int], replays: Sequence[bool]) -> None:
        self.tracker, self.label, self.tokens, self.replays = tracker, label, tokens, replays
        self._marks: list[tuple[float, int]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The steps begin, or go on."""
        size = -(-max(1, state.max_steps) // _BINS)
        counts = [0] * -(-state.max_steps // size)
        for number, replay in enumerate(self.replays):
            step = number // args.gradient_accumulation_steps
            if replay and step < state.max_steps:
                counts[step // size] += 1
        replayed = counts if any(counts) else []
        self.tracker.training(self.label, state.max_steps, state.global_step, replayed, size)
        self._marks = [(time.monotonic(), state.global_step)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        self._marks.append((time.monotonic(), state.global_step))
        # The speed of the last steps: a mean since the beginning would hide a machine that has become slow.
        self._marks = self._marks[-32:]
        (begun, first), (now, last) = self._marks[0], self._marks[-1]
        every = args.gradient_accumulation_steps
        tokens = sum(self.tokens[first * every : last * every])
        speed = tokens / (now - begun) if now > begun and tokens else None
        self.tracker.progress(state.global_step, state.max_steps, speed, state.global_step >= state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Loss terms and shares; not the Trainer's own summary at the end."""
        values = {key: value for key, value in (logs or {}).items() if not key.startswith("train_")}
        if any(key.startswith(("loss", "retention/")) for key in values):
            self.tracker.log(values | {"step": state.global_step}, self.label)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What retention probes have done, which stands in the Trainer's history alone."""
        for one in state.log_history:
            if "retention_action" in one:
                self.tracker.retention(one["step"], str(one["retention_told"]), str(one["retention_action"]))


def closed(tracker: Tracker, how: str, message: str = "") -> None:
    """Ends a tracker on the way out of an error, which matters more than anything that goes wrong here."""
    with suppress(Exception):
        tracker.end(how, message)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")

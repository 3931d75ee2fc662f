"""Where the time of a training goes: the calls that every Trainer makes, timed from outside.

What is timed are methods of transformers, accelerate and TRL, and of this library only what docs/adding_a_method.md
describes, so that the same file measures earlier commits as well.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TRAINING = ("data", "forward", "backward", "optimizer", "rest of training")


class Phases:
    """Seconds of each phase; inside another one a phase interrupts it, so that they add up to the whole.

    Attributes:
        wall: seconds by phase.
        cpu: CPU seconds of all threads by phase.
        peak: bytes at the highest of the training: resident ones, or on a GPU allocated ones.
        resident: bytes when it began.
        steps: optimizer steps.
    """

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.peak = self.resident = self.steps = 0
        self._open = ["prepare"]
        self._since = self._now()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Counts what happens inside for ``name``."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    @contextmanager
    def training(self, trainer: Any) -> Iterator[None]:
        """The call of ``Trainer.train``; what follows it is writing."""
        self.resident = _reset_peak()
        with self.span("rest of training"):
            yield
        self.peak, self.steps = _peak(), trainer.state.global_step
        self._open[0] = "write"

    def finish(self) -> dict[str, Any]:
        """All of it as JSON types."""
        self._turn()
        return {
            "wall": dict(self.wall), "cpu": dict(self.cpu), "peak": self.peak, "resident": self.resident,
            "steps": self.steps,
        }  # fmt: skip

    def _turn(self) -> None:
        now = self._now()
        self.wall[self._open[-1]] += now[0] - self._since[0]
        self.cpu[self._open[-1]] += now[1] - self._since[1]
        self._since = now

    @staticmethod
    def _now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def watch(phases: Phases) -> None:
    """Has the calls of this process counted from now on."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedModel, Trainer

    def count(owner: Any, name: str, phase: str) -> None:
        found = vars(owner)[name]
        original = getattr(found, "__func__", found)

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with phases.span(phase):
                return original(*args, **kwargs)

        setattr(owner, name, classmethod(counted) if isinstance(found, classmethod) else counted)

    count(PreTrainedModel, "from_pretrained", "load")
    count(Trainer, "get_batch_samples", "data")
    count(Accelerator, "backward", "backward")
    count(AcceleratedOptimizer, "step", "optimizer")
    for kind in _below(Trainer):
        if "compute_loss" in vars(kind):
            count(kind, "compute_loss", "forward")
    _count_training(Trainer, phases)
    _count_methods(count)


def _count_training(trainer: Any, phases: Phases) -> None:
    original = trainer.train

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        with phases.training(self):
            return original(self, *args, **kwargs)

    trainer.train = train


def _count_methods(count: Callable[[Any, str, str], None]) -> None:
    """What this library's methods do with kept samples around a task; in TRL's process they are not there."""
    try:
        from seekr_cl.methods import Method
    except ImportError:
        return
    for kind in _below(Method):
        for name, phase in (("before_task", "score before"), ("after_task", "score after")):
            if name in vars(kind):
                count(kind, name, phase)


def _below(kind: type) -> list[type]:
    return [kind, *(one for child in kind.__subclasses__() for one in _below(child))]


def _reset_peak() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024

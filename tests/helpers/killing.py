"""Kills a stream of three tasks, resumes it until it is done, and compares it with the one that was never killed."""

import hashlib
import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zygote
from tinylm import save_base

from seekr_cl.system import fault_points as faults

SOURCES = Path(__file__).parents[2] / "src"
KILLED = -9
_TIMES = {
    "seconds",
    "timing",
    "written",
    "created",
    "model_folder",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}
"""What is about time and nothing else; ``run.json``, ``record.jsonl`` and the plot hold no result."""


def named_points() -> set[str]:
    """Every fault point that the source names: a new one joins by itself. ``learn.`` ones are named by phase."""
    from seekr_cl.training.task_progress import PHASES

    found = {
        name for path in SOURCES.rglob("*.py") for name in re.findall(r'fault_point\(f?"([^"]+)"\)', path.read_text())
    }
    return {name for name in found if "{" not in name} | {f"learn.{phase}" for phase in PHASES}


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file that a stream leaves, by its content's hash, times left out: weights, memory, scores, predictions."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if (
            path.is_dir()
            or path.name == "record.jsonl"
            or name in ("err", "passed.json", "run/run.json", "run/scores.png")
        ):
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        # A generation has its date and place in it, so its hash and the manifest's are left out; the hashes of the
        # samples' files are compared.
        dated = "generations" in content or re.fullmatch(r"\d{4}\.json", str(content.get("file")))
        left_out = _TIMES | ({"sha256", "bytes"} if dated else set())
        return {k: _timeless(v) for k, v in content.items() if k not in left_out}
    return [_timeless(one) for one in content] if isinstance(content, list) else content


@dataclass
class Killer:
    """What the undisturbed runs gave.

    Attributes:
        place: for everything; it holds the base model.
        kills: how many processes have been killed so far.
    """

    place: Path
    kills: int = 0
    _whole: dict[str, tuple[dict[str, str], dict[str, int], float]] = field(default_factory=dict)
    _made: int = 0

    def ask(self, folder: Path, case: str, fault: str = "", after: float | None = None) -> dict[str, Any]:
        """One process: its exit code, its seconds and, if it ended, how often it passed each fault point."""
        began = time.perf_counter()
        words = [str(self.place / "base"), str(folder), case]
        process = zygote.start("killed_streams:child", *words, environment={faults.VARIABLE: fault})
        if after is not None:
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
        answer: dict[str, Any] = {"code": process.wait(), "seconds": time.perf_counter() - began}
        if answer["code"] == 0:
            answer["passed"] = json.loads((folder / "passed.json").read_text())
        self.kills += answer["code"] == KILLED
        if answer["code"] not in (0, KILLED):
            raise AssertionError((folder / "err").read_text())
        return answer

    def fresh(self) -> Path:
        """A folder for one attempt."""
        self._made += 1
        folder = self.place / f"{self._made:05d}"
        folder.mkdir()
        return folder

    def whole(self, case: str) -> tuple[dict[str, str], dict[str, int], float]:
        """The undisturbed run: its files, how often it passed each point, its seconds."""
        if case not in self._whole:
            folder = self.fresh()
            answer = self.ask(folder, case)
            self._whole[case] = fingerprint(folder), answer["passed"], answer["seconds"]
        return self._whole[case]

    def occurrences(self, case: str) -> list[str]:
        """``name:count`` of every passing of every point."""
        passed = self.whole(case)[1]
        return [f"{name}:{count}" for name in sorted(passed) for count in range(1, passed[name] + 1)]

    def differences(self, folder: Path, case: str) -> list[str]:
        """Files in which a finished attempt differs from the undisturbed run."""
        one, other = fingerprint(folder), self.whole(case)[0]
        return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@contextmanager
def killer(place: Path) -> Iterator[Killer]:
    """A base model, and what is killed with it, as long as the block lasts."""
    # Dropout draws from torch's own generator in every step, so that one that is not restored shows.
    save_base(place / "base", attention_dropout=0.2)
    rows = [{"prompt": f"say {letter}:", "completion": letter * 2} for letter in "abcdefghij"]
    (place / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield Killer(place)

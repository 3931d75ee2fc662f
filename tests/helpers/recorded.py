"""Curves of a training: what its log says of every step, how two are compared, and how one is put on record.

Recorded ones stand in ``curves/``, a JSON file for each case of ``cases.CASES``; ``recipes/record_curves.py`` writes
them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Curves = dict[str, list[float]]
RECORDED = Path(__file__).resolve().parents[1] / "invariants" / "curves"
DIGITS = 9


@dataclass(frozen=True)
class Tolerance:
    """How far apart two curves may be, relative to each value, or to ``scale`` for smaller ones.

    Attributes:
        largest: at any step.
        mean: of all steps, signs kept: a drift shows in it that stays below the noise at every single step.
        scale: what counts as a small value.
    """

    largest: float
    mean: float
    scale: float


def curves(folder: Path) -> Curves:
    """Every number of every line of both tasks' logs, by name: loss terms, gradient norm, shares, weights."""
    found: Curves = {}
    for task in ("m1", "m2"):
        for line in json.loads((folder / task / "training_log.json").read_text()):
            for key, value in line.items():
                if key.startswith(("loss", "grad_norm", "share_", "weight_")):
                    found.setdefault(f"{task}/{key}", []).append(value)
    return found


def differences(left: Curves, right: Curves, tolerance: Tolerance, factor: float = 1.0) -> list[str]:
    """Where they are further apart than ``factor`` tolerances, one line a curve."""
    found = [f"{name} is in one of them only" for name in sorted(left.keys() ^ right.keys())]
    for name in sorted(left.keys() & right.keys()):
        values, others = left[name], right[name]
        if len(values) != len(others) or not values:
            found.append(f"{name}: {len(values)} and {len(others)} steps")
            continue
        apart = [(one - other) / max(tolerance.scale, abs(one)) for one, other in zip(values, others)]
        step = max(range(len(apart)), key=lambda place: abs(apart[place]))
        mean = sum(apart) / len(apart)
        # Not larger, so that what is not a number is found too.
        if not (abs(apart[step]) <= factor * tolerance.largest and abs(mean) <= factor * tolerance.mean):
            found.append(
                f"{name}: {apart[step]:+.1e} apart at line {step + 1} ({values[step]:.9g}, {others[step]:.9g}), "
                f"{mean:+.1e} in the mean"
            )
    return found


SAME = Tolerance(largest=5e-5, mean=5e-6, scale=1.0)
"""Of two trainings on one machine that differ in the order of additions."""


def assert_same_curves(left: Curves, right: Curves, factor: float = 1.0) -> None:
    """The same within ``factor`` times ``SAME``."""
    found = differences(left, right, SAME, factor)
    assert not found, "\n".join(found)


def write_record(name: str, found: Curves, origin: dict[str, str]) -> Path:
    """Puts a case on record, with where the numbers come from."""
    RECORDED.mkdir(exist_ok=True)
    rounded = {key: [float(f"{value:.{DIGITS}g}") for value in values] for key, values in sorted(found.items())}
    head = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in origin.items()]
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(values)}" for key, values in rounded.items())
    path = record_of(name)
    path.write_text("\n".join(["{", *head, '  "curves": {', lines, "  }", "}"]) + "\n", encoding="utf-8")
    return path


def read_record(name: str) -> dict[str, Any]:
    """What ``write_record`` wrote; the curves under ``curves``."""
    return dict(json.loads(record_of(name).read_text(encoding="utf-8")))


def record_of(name: str) -> Path:
    """A case's file."""
    return RECORDED / f"{name}.json"

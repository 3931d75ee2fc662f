"""What else was measured of runs, beside their scores: form of the answers, drift."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from seekr_cl.evaluation.answer_form import mean_valid
from seekr_cl.evaluation.scores import ScoreMatrix
from seekr_cl.system import reading

MEASURES = {
    "valid_format": ("valid format", "{:.1f}%"),
    "kl_old": ("KL base to model, old", "{:.3g}"),
    "kl_new": ("new", "{:.3g}"),
    "kl_general": ("general", "{:.3g}"),
    "text_rise": ("plain-text loss above base", "{:+.3f}"),
}
"""By key: the column, and how its number is told."""


def measures_of(runs: Sequence[tuple[Path, dict[str, Any], ScoreMatrix]]) -> dict[str, float | None]:
    """Means over a method's seeds.

    Args:
        runs: folder, ``scores.json`` and matrix of each.

    Returns:
        by key of ``MEASURES``; None where a run does not have it, such as one of a former version.
    """
    found = [_of_run(*run) for run in runs]
    known = {key: [value for one in found if (value := one[key]) is not None] for key in MEASURES}
    return {key: mean(values) if len(values) == len(runs) else None for key, values in known.items()}


def _of_run(folder: Path, scores: dict[str, Any], matrix: ScoreMatrix) -> dict[str, float | None]:
    forms = scores.get("format")
    learned = matrix.tasks[: matrix.learnt]
    known = isinstance(forms, dict) and all(task in forms for task in learned)
    valid = mean_valid({task: forms[task] for task in learned}) if isinstance(forms, dict) and known else None
    return {"valid_format": valid} | _drift(folder)


def _drift(folder: Path) -> dict[str, float | None]:
    """Of ``drift.json``, which ``seekr drift`` writes into a run's folder."""
    found: dict[str, float | None] = dict.fromkeys(("kl_old", "kl_new", "kl_general", "text_rise"))
    try:
        content = reading.read_json(folder / "drift.json")
        for kind in ("old", "new", "general"):
            values = [float(one["kl"]) for one in content["kl"] if (one["against"], one["kind"]) == ("base", kind)]
            found[f"kl_{kind}"] = mean(values) if values else None
        found["text_rise"] = float(content["text"]["base"]["rise"]) if content["text"] else None
    except (OSError, ValueError, KeyError, TypeError):
        # There is none, or it is no file of ours: what is not known is left out.
        pass
    return found

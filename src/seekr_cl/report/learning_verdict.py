"""The verdict on one learning, where no tests of old tasks are at hand: the memory's own samples stand in for them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seekr_cl.errors import DataError
from seekr_cl.evaluation.change import describe, score_change
from seekr_cl.evaluation.statistics import Array, Tally, bootstrap, paired_interval
from seekr_cl.report.verdict import CONFIDENCE, MAX_DROP, Line, Verdict
from seekr_cl.report.verdicts import Compared, cost_of, mean_change
from seekr_cl.system import reading

RETENTION = "retention.json"
MEASURE = "answer probability"
"""Geometric mean over an answer's tokens, in percent: it moves long before an answer becomes a wrong one."""
_SOURCES = {"test": "test examples", "eval": "eval examples", "train": "training examples", "memory": "stored samples"}


def of_learning(folder: Path, training: Mapping[str, Any], memory_bytes: int, *, max_drop: float = MAX_DROP) -> Verdict:
    """The verdict on a model that ``seekr learn`` wrote.

    Args:
        folder: the model's, with ``retention.json``.
        training: what the memory says of the task's training.
        memory_bytes: of the memory.
        max_drop: points of answer probability that an old task may lose.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / RETENTION
    cost = cost_of({"training": [dict(training)], "memory_bytes": memory_bytes})
    if not path.is_file():
        return Verdict((), "memory", max_drop, cost=cost, notes=("nothing was probed (retention.samples is 0)",))
    try:
        content = reading.read_json(path)
        lines, compared, notes = _lines(content["tasks"], max_drop)
        notes += [
            f"step {one['step']}: {one['retention_action']}: {one['retention_told']}" for one in content["actions"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not the probes of this library ({error})") from error
    return Verdict(
        tuple(lines), "memory", max_drop, CONFIDENCE, mean_change(compared, CONFIDENCE, 2000), cost, tuple(notes)
    )


def _lines(tasks: list[dict[str, Any]], max_drop: float) -> tuple[list[Line], list[Compared], list[str]]:
    lines: list[Line] = []
    compared: list[Compared] = []
    left_out = []
    for given in sorted(tasks, key=lambda task: ("old", "general", "new").index(task["kind"])):
        one, missing = _finite(given)
        if missing:
            left_out.append(f"task '{one['task']}': {missing} probes gave no finite number and are left out")
            if not one["before"]["exact"]:
                if one["kind"] != "new":
                    # Nothing says what was lost of it, which is not to be taken for nothing lost.
                    lines.append(Line(one["task"], one["kind"], MEASURE, None, outcome="unsure", max_drop=max_drop))
                continue
        both = [_probability(one[side]) for side in ("before", "after")]
        change = score_change(*both, level=CONFIDENCE)
        more = {"source": one["source"], "exact": _exact(one), "log_likelihood": _likelihood(one)}
        moved = _moved(one)
        lines.append(
            Line.of(
                one["task"],
                one["kind"],
                MEASURE,
                change,
                max_drop,
                **more,
                **({"kl_to_stored": moved} if moved else {}),
            )
        )
        if one["kind"] == "old":
            compared.append((Tally(both[0][:, None]), Tally(both[1][:, None]), change))
    notes = left_out
    if any(line.kind != "new" for line in lines):
        notes.append(
            "old tasks: probed on the memory's own samples, which the training may have replayed, so this is a hopeful "
            "view; tests say more: seekr evaluate --before"
        )
    else:
        notes.append("old tasks: the memory has samples of none, as before a first task, so nothing is said of any")
    new = {line.more["source"] for line in lines if line.kind == "new"}
    notes += [f"new task: probed on its {_SOURCES[source]}" for source in sorted(new)]
    return lines, compared, notes


def _finite(one: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """A task's probes whose likelihood is known on both sides, and how many of them are not."""
    pairs = list(zip(one["before"]["log_likelihood"], one["after"]["log_likelihood"], strict=True))
    known = [place for place, pair in enumerate(pairs) if None not in pair]
    sides = {
        side: {key: [values[place] for place in known] for key, values in one[side].items()}
        for side in ("before", "after")
    }
    return {**one, **sides}, len(pairs) - len(known)


def _probability(found: Mapping[str, Any]) -> Array:
    return 100 * np.exp(np.array(found["log_likelihood"], dtype=float))


def _exact(one: Mapping[str, Any]) -> dict[str, Any]:
    """Answers that greedy decoding writes exactly, in percent."""
    before_N, after_N = (100 * np.array(one[side]["exact"], dtype=float) for side in ("before", "after"))
    return describe(score_change(before_N, after_N, level=CONFIDENCE))


def _likelihood(one: Mapping[str, Any]) -> dict[str, Any]:
    """Log-likelihood of the answers in nats a token."""
    both = [Tally(np.array(one[side]["log_likelihood"], dtype=float)[:, None]) for side in ("before", "after")]
    found = paired_interval([both[0]], [both[1]])
    before, after = (round(tally.score, 4) for tally in both)
    return {"before": before, "after": after, "change": round(after - before, 4), "interval": found.to_json()}


def _moved(one: Mapping[str, Any]) -> dict[str, Any] | None:
    """KL of the stored signals to the model in nats a token, over samples that have any."""
    both = [
        np.array([math.nan if value is None else value for value in one[side]["kl"]]) for side in ("before", "after")
    ]
    known_N = ~(np.isnan(both[0]) | np.isnan(both[1]))
    if not known_N.any():
        return None
    tallies = [Tally(values[known_N][:, None]) for values in both]
    return {
        "before": round(tallies[0].score, 4),
        "after": round(tallies[1].score, 4),
        "interval": bootstrap(tallies[1]).to_json(),
        "samples": int(known_N.sum()),
    }

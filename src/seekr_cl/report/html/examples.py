"""Which answers were gained and lost between two stages, from their predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError
from seekr_cl.evaluation.prediction_files import read_rows
from seekr_cl.report.html.data import Change, Changes
from seekr_cl.system.visible import excerpt
from seekr_cl.tasks.task import safe_name

MOST = 240
"""Answers on one page; each task gets its share, and what it leaves free goes to the others."""
_EQUAL = 1e-9


def changes_between(pairs: Sequence[tuple[str, Path, Path]], notes: list[str], about: str, most: int = MOST) -> Changes:
    """Compares answers, example by example.

    Args:
        pairs: task, folder of the stage before, folder of the stage after.
        notes: gets a line for each task that cannot be compared.
        about: what the stages are.
        most: changes to show.
    """
    found: dict[str, list[Change]] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    for task, before, after in pairs:
        name = f"{safe_name(task)}.jsonl"
        try:
            first, last = read_rows(before / name), read_rows(after / name)
        except DataError as error:
            notes.append(f"examples of task '{task}': {error}")
            continue
        same = len(first) == len(last) and all(a["prompt"] == b["prompt"] for a, b in zip(first, last))
        if not same:
            notes.append(f"examples of task '{task}': the two evaluations asked other questions")
            continue
        moved = [
            (b["score"] - a["score"], a, b)
            for a, b in zip(first, last)
            if abs(b["score"] - a["score"]) > _EQUAL and not (a.get("forgotten") or b.get("forgotten"))
        ]
        # The largest change first; the order of the data among equals.
        moved.sort(key=lambda one: -abs(one[0]))
        gained = sum(change > 0 for change, _, _ in moved)
        former = counts.get(task, (0, 0, 0))
        counts[task] = former[0] + gained, former[1] + len(moved) - gained, max(former[2], len(first))
        found.setdefault(task, []).extend(_change(task, a, b) for _, a, b in _mixed(moved, most))
    return Changes(_share(found, most), counts, about)


def _mixed(moved: list[Any], most: int) -> list[Any]:
    """Losses first, and room for gains."""
    lost, gained = [one for one in moved if one[0] < 0], [one for one in moved if one[0] > 0]
    kept = lost[: max(most - len(gained), most * 2 // 3)]
    return kept + gained[: most - len(kept)]


def _share(found: dict[str, list[Change]], most: int) -> list[Change]:
    shown: list[Change] = []
    left = most
    for waiting, (_, own) in zip(range(len(found), 0, -1), sorted(found.items(), key=lambda item: len(item[1]))):
        room = left // waiting
        lost, gained = [one for one in own if not one.gained], [one for one in own if one.gained]
        kept = lost[: max(room - len(gained), room * 2 // 3)]
        kept += gained[: room - len(kept)]
        shown += kept
        left -= len(kept)
    order = list(found)
    return sorted(shown, key=lambda one: (order.index(one.task), one.gained))


def _change(task: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    references = after["references"]
    expected = references[0] if references else ""
    return Change(
        task,
        after["score"] > before["score"],
        excerpt(after["prompt"]),
        excerpt(expected, 600),
        excerpt(before["prediction"], 600),
        excerpt(after["prediction"], 600),
        (float(before["score"]), float(after["score"])),
    )

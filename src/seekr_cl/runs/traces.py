"""What is left of texts outside a memory, in the folders of ``seekr run``, ``evaluate`` and ``learn``, and removing it.

    evaluations/<stage>/<task>.jsonl   predictions: prompts, accepted answers, the model's answers
    <task>.answers-*.jsonl             journals of an interrupted evaluation: the model's answers
    checkpoints/, <output>.checkpoints the task that is being learned: its samples, and those of general data
    memory/                            a run's own memory

The Trainer's own folder holds no texts, and neither do models, but for what they have learned.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, OutputError
from seekr_cl.evaluation.journal import is_journal, journals
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.memory.lineage import MANIFEST
from seekr_cl.memory.samples import sample_id
from seekr_cl.system import reading
from seekr_cl.system.files import write_bytes
from seekr_cl.system.modes import files_like
from seekr_cl.system.removal import remove_file
from seekr_cl.tasks.task import safe_name
from seekr_cl.training.checkpoint import Checkpoints

_LEDGERS = ("run.json", "scores.json", "partial.json")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be forgotten: a task, or one sample wherever it is.

    Attributes:
        task: its name; or
        sample: its id.
    """

    task: str | None = None
    sample: str | None = None

    def is_in(self, row: dict[str, Any]) -> bool:
        """Whether a prediction's texts are those of the sample."""
        answers = [*row.get("references", []), row.get("prediction")]
        return any(sample_id(str(row.get("prompt")), str(answer)) == self.sample for answer in answers)


@dataclass(frozen=True, slots=True)
class Trace:
    """One place where texts are left.

    Attributes:
        path: a file, or the folder of checkpoints.
        what: what it holds, for people.
    """

    path: Path
    what: str


def check_folder(folder: Path) -> None:
    """Makes sure that a folder is one of this program's.

    Raises:
        ConfigError: if it is none of a run, an evaluation or a learning.
    """
    if folder.is_file():
        raise ConfigError(
            f"--everywhere: {folder} is a file; import an exported memory, forget there, and export it anew"
        )
    if not any((folder / name).is_file() for name in _LEDGERS) and not _checkpoints(folder):
        raise ConfigError(f"--everywhere: {folder} is not a folder of seekr run, evaluate or learn; name one that is")


def find(folder: Path, wanted: Wanted) -> list[Trace]:
    """Where in a folder the texts are, its memory left out.

    Args:
        folder: of a run, an evaluation or a learning.
        wanted: what is looked for.

    Raises:
        OutputError: if something cannot be read.
    """
    found = []
    for path in _predictions(folder, wanted):
        count = sum(_holds(row, wanted) for row in _rows(path))
        if count:
            found.append(Trace(path, f"{count} predictions"))
    if wanted.task is not None:
        for place in _places(folder):
            for path in journals(place, safe_name(wanted.task)):
                if is_journal(path):
                    found.append(Trace(path, "answers of an interrupted evaluation"))
    for saves in _checkpoints(folder):
        if _learns(saves, wanted):
            found.append(Trace(saves.place, "an interrupted learning"))
    return found


def remove(folder: Path, wanted: Wanted) -> list[Trace]:
    """Removes the texts: of predictions only scores stay; an interrupted learning of them begins again when resumed.

    Args:
        folder: of a run, an evaluation or a learning; the caller holds it.
        wanted: what is removed.

    Returns:
        What held them, the run's own memory included.

    Raises:
        OutputError: if something cannot be read or written.
        MemoryFormatError: if the run's memory is damaged.
    """
    found = find(folder, wanted)
    for trace in found:
        if trace.path.is_dir():
            Checkpoints(trace.path).clear()
        elif is_journal(trace.path):
            _delete(trace.path)
        else:
            rows = [_bare(row) if _holds(row, wanted) else row for row in _rows(trace.path)]
            lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            with files_like(trace.path):
                write_bytes(trace.path, lines.encode(), private=True)
    memory = folder / "memory"
    if (memory / MANIFEST).is_file():
        try:
            done = upkeep.forget(memory, task=wanted.task, sample=wanted.sample)
            found.append(Trace(memory, f"{done.samples} samples"))
        except ConfigError:
            # It never held them, or holds them no more.
            pass
    return found


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """A prediction without texts; what reads it takes scores where it can and goes without where it cannot."""
    return {"prompt": "", "prediction": "", "references": [""], "score": row.get("score"), "forgotten": True}


def _holds(row: dict[str, Any], wanted: Wanted) -> bool:
    return not row.get("forgotten") and (wanted.task is not None or wanted.is_in(row))


def _places(folder: Path) -> list[Path]:
    """The folders of predictions: of a run one for each stage, of an evaluation the folder itself."""
    stages = folder / "evaluations"
    inner = sorted(path for path in stages.iterdir() if path.is_dir()) if stages.is_dir() else []
    return [folder, *inner]


def _predictions(folder: Path, wanted: Wanted) -> Iterator[Path]:
    for place in _places(folder):
        named = (
            [place / f"{safe_name(wanted.task)}.jsonl"] if wanted.task is not None else sorted(place.glob("*.jsonl"))
        )
        yield from (path for path in named if path.is_file() and not path.is_symlink() and not is_journal(path))


def _rows(path: Path) -> list[dict[str, Any]]:
    """A predictions file; none of any other file, which is left as it is."""
    try:
        rows = [_parsed(line) for line in reading.json_lines(path.read_bytes())]
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
    ours = [isinstance(row, dict) and {"prediction", "score"} <= row.keys() for row in rows]
    if any(ours) and not all(ours):
        raise OutputError(
            f"{path}: line {ours.index(False) + 1} is damaged, and what it holds cannot be found; remove the file"
        )
    return rows if all(ours) else []


def _parsed(line: bytes) -> Any:
    """A line's JSON; ``None`` if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _checkpoints(folder: Path) -> list[Checkpoints]:
    """Of the run, or of the learning into this folder."""
    places = [Checkpoints(folder / "checkpoints"), Checkpoints(folder.parent / f"{folder.name}.checkpoints")]
    return [saves for saves in places if saves.any()]


def _learns(saves: Checkpoints, wanted: Wanted) -> bool:
    """Whether any checkpoint holds the texts; a damaged one may."""
    for number in saves.numbers():
        try:
            state = json.loads((saves.path(number) / "state.json").read_text(encoding="utf-8"))
            names = [one["name"] for one in [*state["identity"]["tasks"], *state["tasks"]]]
            texts = [*state["kept"], *(text for one in state["tasks"] for text in one["texts"])]
            ids = [sample_id(text["prompt"], text["completion"]) for text in texts]
        except (OSError, ValueError, KeyError, TypeError):
            return True
        if wanted.task in names or wanted.sample in ids:
            return True
    return False


def _delete(path: Path) -> None:
    try:
        remove_file(path, is_journal)
    except OSError as error:
        raise OutputError(f"{path}: cannot be deleted ({error.strerror}); change its permissions") from error

"""Where a task's splits are: a file, a folder in TRACE's layout, a mapping of files, or a data set on the Hub."""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seekr_cl.errors import DataError, nearest
from seekr_cl.system.paths import at_home
from seekr_cl.tasks.columns import Columns
from seekr_cl.tasks.examples import Example, example_of, reference_list
from seekr_cl.tasks.formats import recognise
from seekr_cl.tasks.in_memory import is_rows, rows_of, splits_of
from seekr_cl.tasks.keys import DataWarning
from seekr_cl.tasks.readers import SUFFIXES, read_json, read_rows, require_exists

SPLITS = ("train", "eval", "test")
Source = Any
"""A path or Hub name, a mapping from split to path, a list of records, or a data set of the library ``datasets``."""
_SPELLINGS = {"train": ("train",), "eval": ("eval", "dev", "validation"), "test": ("test",)}
_DATASET_DICT, _DATASET = "dataset_dict.json", "dataset_info.json"
_HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<config>[^:]+))?")


@dataclass(frozen=True)
class Part:
    """One split that has been found but not read yet.

    Attributes:
        label: What error messages call it.
        rows: Reads the raw rows.
        references: The file of accepted answers that belongs to it.
    """

    label: str
    rows: Callable[[], list[Any]]
    references: Path | None = None

    def examples(self, limit: int | None, allow_empty: bool, columns: Columns | None = None) -> list[Example]:
        """Read and check the split; columns that nothing is made of are named in one warning.

        Args:
            limit: Keep only so many rows from the start.
            allow_empty: Accept empty completions.
            columns: What the records' keys are made of.

        Returns:
            The examples in file order.

        Raises:
            DataError: The file or one of its rows cannot be used.
        """
        rows = self.rows()
        accepted: list[Any] = []
        if self.references is not None:
            accepted = read_json(self.references)
            if len(accepted) != len(rows):
                raise DataError(
                    f"{self.references}: {len(accepted)} rows for the {len(rows)} rows of {self.label}; "
                    "give one list of accepted answers per row"
                )
        if columns is not None:
            columns.check(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row), self.label)
        examples = []
        unused: dict[str, None] = {}
        for number, row in enumerate(rows[:limit], 1):
            where = f"{self.label} row {number}"
            if columns is not None:
                row, left = columns.apply(row, where)
                unused |= dict.fromkeys(left)
            reading = recognise(row, where)
            unused |= dict.fromkeys(reading.unused)
            example = example_of(reading, where, allow_empty)
            if accepted:
                references = reference_list(accepted[number - 1], f"{self.references} row {number}")
                example = replace(example, references=references)
            examples.append(example)
        if unused:
            names = ", ".join(map(repr, unused))
            warnings.warn(f"{self.label}: not used: {names}", DataWarning, stacklevel=2)
        return examples


def locate(source: Source) -> dict[str, Part]:
    """Find the splits of a task.

    Args:
        source: A data file (the train split), a folder, a mapping from split to file, or ``"hub:owner/name[:config]"``.

    Returns:
        The splits found, by the names in ``SPLITS``.

    Raises:
        DataError: A path does not exist, a split is there twice, there is no train split, or the Hub cannot be read.
    """
    if is_rows(source):
        return _given(source)
    if isinstance(source, Mapping):
        for key in source:
            if key not in SPLITS:
                raise DataError(f"split {key!r} is unknown; use {', '.join(SPLITS)}{nearest(str(key), SPLITS)}")
        if "train" not in source:
            raise DataError("the mapping of splits names no 'train'; add the file to learn from")
        # The train entry may be a folder, so that one split of a folder can be swapped for another file.
        parts = locate(source["train"])
        return parts | {key: _file_part(Path(path)) for key, path in source.items() if key != "train"}
    _require_path(source)
    if str(source).startswith("hub:"):
        return _hub(str(source))
    path = at_home(source)
    require_exists(path)
    return _folder(path) if path.is_dir() else {"train": _file_part(path)}


def default_name(source: Source) -> str:
    """Name a task after where it comes from.

    Args:
        source: As for :func:`locate`.

    Returns:
        The folder's or file's stem; for a file called after its split, the folder it lies in.
    """
    if is_rows(source):
        raise DataError("rows have no name of their own; give the task one with name=")
    if isinstance(source, Mapping):
        source = source.get("train", "")
    _require_path(source)
    if match := _HUB.fullmatch(str(source)):
        return "-".join(part for part in (match["repo"].split("/")[1], match["config"]) if part)
    path = at_home(source).absolute()
    if path.suffix.lower() not in SUFFIXES:
        return path.name
    return path.parent.name if path.stem in SPLITS else path.stem


def _require_path(source: Any) -> None:
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"a {type(source).__name__} is not a task; give a file, a folder, rows, or a datasets.Dataset")


def _file_part(path: Path) -> Part:
    path = at_home(path)
    require_exists(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder where a single file was expected; name the file in it")
    references = path.with_name(f"{path.stem}_references.json")
    return Part(str(path), lambda: read_rows(path), references if references.is_file() else None)


def _folder(folder: Path) -> dict[str, Part]:
    if (folder / _DATASET_DICT).is_file() or (folder / _DATASET).is_file():
        return _saved(folder)
    parts = {}
    for split, spellings in _SPELLINGS.items():
        files = [folder / (name + suffix) for name in spellings for suffix in SUFFIXES]
        found = [path for path in files if path.is_file()]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{folder}: the {split} split is there more than once ({names}); keep one")
        if found:
            parts[split] = _file_part(found[0])
    if "train" not in parts:
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise DataError(f"{folder}: no train split (holds {held}); add train{', train'.join(SUFFIXES)}")
    return parts


def _given(source: Any) -> dict[str, Part]:
    """Rows that are in Python already."""
    splits = splits_of(source)
    parts = {}
    for split, spellings in _SPELLINGS.items():
        found = [name for name in spellings if name in splits]
        if found:
            label = "rows" if split == "train" else f"rows of {found[0]}"
            parts[split] = Part(label, partial(rows_of, splits[found[0]]))
    if "train" not in parts:
        raise DataError(f"the data set has no train split (holds {', '.join(splits)}); name the one to learn 'train'")
    return parts


def _saved(folder: Path) -> dict[str, Part]:
    """A folder that ``save_to_disk`` of the library ``datasets`` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # whatever datasets raises, the user needs the folder and the reason
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise DataError(f"{folder}: not readable as a data set that save_to_disk wrote ({reason})") from None
    return _parts(str(folder), found if isinstance(found, DatasetDict) else {"train": found})


def _parts(source: str, splits: Mapping[str, Any]) -> dict[str, Part]:
    parts = {}
    for split, spellings in _SPELLINGS.items():
        found = [name for name in spellings if name in splits]
        if found:
            parts[split] = Part(f"{source} {found[0]}", partial(rows_of, splits[found[0]]))
    if "train" not in parts:
        raise DataError(f"{source}: no train split (holds {', '.join(map(str, splits))}); choose another data set")
    return parts


def _hub(source: str) -> dict[str, Part]:
    match = _HUB.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: not a data set on the Hub; write hub:owner/name or hub:owner/name:config")
    from datasets import load_dataset

    try:
        splits = load_dataset(match["repo"], match["config"])
    except Exception as error:  # offline, gated, unknown, wrong config: the reason and the two ways out are the same
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{source}: cannot be fetched from the Hugging Face Hub ({type(error).__name__}: {reason}); "
            "check the name and the connection, or download it and give the folder"
        ) from None
    return _parts(source, splits)

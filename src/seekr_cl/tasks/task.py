"""A task: what is learned in one go, what it is tested on, and how it is scored."""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.os_errors import named
from seekr_cl.tasks.columns import Columns
from seekr_cl.tasks.examples import Example
from seekr_cl.tasks.extraction import get_extraction
from seekr_cl.tasks.sources import SPLITS, Source, default_name, locate

__all__ = ["Example", "Task", "check_limit", "check_switch", "safe_name"]


def safe_name(name: str) -> str:
    """Turn a task's name into a folder name, so that a name never becomes a path unchecked.

    Args:
        name: Any text.

    Returns:
        The name with everything but letters, digits, ``.``, ``_`` and ``-`` replaced by ``-``; it never starts with
        a dot or a dash.

    Raises:
        DataError: Nothing usable is left, or the result is longer than a file system allows.
    """
    slug = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFKC", name)).lstrip(".-").rstrip(".-")
    if not slug:
        raise DataError(f"task name {name!r} cannot be used as a folder name; use letters or digits")
    if len(slug.encode("utf-8")) > 200:
        raise DataError(f"task name {name[:40]!r}... is too long for a folder name; use at most 200 bytes")
    return slug


def check_limit(limit: Any, where: str = "limit") -> dict[str, int]:
    """Check a mapping from split to the number of rows to keep.

    Args:
        limit: The mapping, or ``None``.
        where: What error messages call it.

    Returns:
        The mapping; empty for ``None``.

    Raises:
        ConfigError: It is not a mapping, names an unknown split, or a number is not a whole number above zero.
    """
    if limit is None:
        return {}
    if not isinstance(limit, Mapping):
        raise ConfigError(f"{where}: must map splits to numbers, e.g. {{train: 100, test: 50}}, not {limit!r}")
    for split, number in limit.items():
        if split not in SPLITS:
            raise ConfigError(f"{where}: unknown split {split!r}; use {', '.join(SPLITS)}{nearest(str(split), SPLITS)}")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"{where}: {split} must be a whole number above 0, not {number!r}")
    return dict(limit)


def check_switch(value: Any, where: str) -> bool:
    """Check a setting that is on or off.

    Args:
        value: What was given; ``None`` is off.
        where: What error messages call it.

    Returns:
        Whether it is on.

    Raises:
        ConfigError: It is neither true nor false.
    """
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{where}: must be true or false, not {value!r}")
    return bool(value)


@dataclass
class Task:
    """One task of a stream.

    Attributes:
        name: Any text; ``slug`` is the form that may become a folder.
        train: The examples to learn from.
        test: The examples to be scored on.
        eval: The examples to choose settings with.
        metric: The name of the metric, checked by whoever scores.
        epochs: How often to pass over ``train``; ``None`` leaves it to the trainer.
        max_new_tokens: How much to generate when tested.
        train_source: Where ``train`` came from.
        extract: Which part of what is generated is scored; a key of ``answers.EXTRACTIONS``.
    """

    name: str
    train: list[Example]
    test: list[Example] = field(default_factory=list)
    eval: list[Example] = field(default_factory=list)
    metric: str = "exact_match"
    epochs: float | None = None
    max_new_tokens: int = 64
    train_source: str = ""
    extract: str = "whole"

    def __post_init__(self) -> None:
        safe_name(self.name)
        if not isinstance(self.metric, str) or not self.metric:
            raise ConfigError(f"task {self.name!r}: metric must be a name, not {self.metric!r}")
        try:
            get_extraction(self.extract)
        except ConfigError as error:
            raise ConfigError(f"task {self.name!r}: {error}") from None
        epochs, tokens = self.epochs, self.max_new_tokens
        if epochs is not None:
            if isinstance(epochs, bool) or not isinstance(epochs, int | float):
                raise ConfigError(f"task {self.name!r}: epochs must be a number, not {epochs!r}")
            if not (math.isfinite(epochs) and epochs > 0):
                raise ConfigError(f"task {self.name!r}: epochs must be above 0, not {epochs!r}")
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ConfigError(f"task {self.name!r}: max_new_tokens must be a whole number above 0, not {tokens!r}")

    @property
    def slug(self) -> str:
        """The name as a folder name."""
        return safe_name(self.name)

    @classmethod
    @named(DataError)
    def load(
        cls,
        source: Source,
        name: str | None = None,
        metric: str = "exact_match",
        epochs: float | None = None,
        max_new_tokens: int = 64,
        limit: Mapping[str, int] | None = None,
        *,
        require_test: bool = False,
        allow_empty: bool = False,
        extract: str = "whole",
        columns: Mapping[str, str] | None = None,
    ) -> "Task":
        """Read a task.

        Args:
            source: A JSON, JSONL, CSV or Parquet file (the train split); a folder with ``train``, ``eval`` (or
                ``dev``, ``validation``) and ``test`` files, ``test_references.json`` beside them if wanted; a folder
                that ``datasets`` saved; a mapping ``{"train": ..., "eval": ..., "test": ...}``; or
                ``"hub:owner/name[:config]"``.
            name: The task's name; by default that of the folder or file.
            metric: The name of the metric.
            epochs: How often to pass over the train split.
            max_new_tokens: How much to generate when tested.
            limit: Keep only the first rows of a split, e.g. ``{"train": 100}``.
            require_test: Refuse a task without a test split.
            allow_empty: Accept empty completions.
            extract: Which part of what is generated is scored.
            columns: What the records' keys are made of, where the file calls them otherwise: from ``prompt``,
                ``completion``, ... to a column, or to a template such as ``"Question: {question}"``.

        Returns:
            The task.

        Raises:
            DataError: A file is missing, empty, broken, or holds a row that cannot be used; the message names it.
            ConfigError: A setting is out of range.
        """
        limits, mapping = check_limit(limit), Columns.read(columns)
        name = default_name(source) if name is None else name
        safe_name(name)
        parts = locate(source)
        if require_test and "test" not in parts:
            where = source.get("train") if isinstance(source, Mapping) else source
            raise DataError(f"{where}: task {name!r} has no test split; add a test file or give one as 'test'")
        read = {split: part.examples(limits.get(split), allow_empty, mapping) for split, part in parts.items()}
        return cls(
            name, read["train"], read.get("test", []), read.get("eval", []), metric, epochs, max_new_tokens,
            parts["train"].label, extract,
        )  # fmt: skip

    @property
    def formats(self) -> list[str]:
        """The formats that the examples were read as, each once; see ``formats.FORMATS``."""
        names = (example.read_as for example in [*self.train, *self.eval, *self.test])
        return list(dict.fromkeys(name for name in names if name))

    def fingerprint(self) -> str:
        """Hash the training examples' texts, so that a resumed run can tell whether its data changed.

        Returns:
            A SHA-256 in hexadecimal; where the files lie and what the references are has no part in it.
        """
        digest = hashlib.sha256()
        for example in self.train:
            # JSON marks where each text ends, so that ("ab", "c") and ("a", "bc") differ.
            texts = [example.prompt, example.completion, example.messages, *example.told]
            digest.update(json.dumps(texts, sort_keys=True).encode("ascii") + b"\n")
        return digest.hexdigest()

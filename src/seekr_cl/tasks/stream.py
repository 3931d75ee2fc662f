"""Tasks in the order in which they are learned, from a YAML file or from code."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.os_errors import named
from seekr_cl.placement import TASK, declare, unknown
from seekr_cl.renamed import rename_settings
from seekr_cl.system.paths import beside
from seekr_cl.system.yaml_file import expand, read_yaml
from seekr_cl.tasks.benchmarks import BenchmarkUse
from seekr_cl.tasks.columns import Columns
from seekr_cl.tasks.sources import Source, default_name
from seekr_cl.tasks.task import Task, check_limit, check_switch, safe_name

_TASK_KEYS = (
    "name",
    "data",
    "eval",
    "test",
    "metric",
    "epochs",
    "max_new_tokens",
    "extract",
    "limit",
    "columns",
    "allow_empty",
)
_COMMON = ("columns", "allow_empty")
_CHECKED = ("metric", "epochs", "max_new_tokens", "extract")
declare(
    TASK,
    lambda: _TASK_KEYS,
    lambda key: (
        "it belongs to a task's entry of a stream: write tasks: "
        + (f"[{{data: FILE, {key}: VALUE}}]" if key != "data" else "[{data: FILE}]")
    ),
)


@dataclass
class TaskSpec:
    """One entry of a stream's ``tasks`` list; nothing is read from disk yet.

    Attributes:
        name: The task's name.
        data: A file, folder or ``hub:`` name; relative paths are already joined to the YAML file's folder.
        eval: A file that replaces the eval split.
        test: A file that replaces the test split.
        metric: The name of the metric.
        epochs: How often to pass over the train split.
        max_new_tokens: How much to generate when tested.
        extract: Which part of what is generated is scored: `whole`, or `trace` (what comes after a rationale).
        limit: Rows to keep per split.
        columns: What the records' keys are made of: `{prompt: question, completion: answer}`, or templates such as
            `"Question: {question}"`.
        allow_empty: Take rows whose answer is empty: the model learns to write nothing.
    """

    name: str
    data: str
    eval: str | None = None
    test: str | None = None
    metric: str = "exact_match"
    epochs: float | None = None
    max_new_tokens: int = 64
    extract: str = "whole"
    limit: dict[str, int] = field(default_factory=dict)
    columns: dict[str, str] | None = None
    allow_empty: bool = False

    def load(self, require_test: bool = True) -> Task:
        """Read the task; see :meth:`Task.load` for the errors.

        Args:
            require_test: Refuse a task without a test split.

        Returns:
            The task.

        Raises:
            DataError: A file cannot be used; the message names it.
        """
        swapped = {key: path for key, path in (("eval", self.eval), ("test", self.test)) if path is not None}
        source: Source = {"train": self.data, **swapped} if swapped else self.data
        return Task.load(
            source, self.name, self.metric, self.epochs, self.max_new_tokens, self.limit, require_test=require_test,
            extract=self.extract, columns=self.columns, allow_empty=self.allow_empty,
        )  # fmt: skip


@dataclass
class StreamSpec:
    """A stream as written in YAML.

    Attributes:
        tasks: The entries of the ``tasks`` list, in order.
        settings: Every other top-level key, unchecked, with ``${VAR}`` filled in.
        path: The YAML file.
        benchmark: What the ``benchmark`` key stands for, if the stream has one in place of ``tasks``.
    """

    tasks: list[TaskSpec]
    settings: dict[str, Any]
    path: Path
    benchmark: BenchmarkUse | None = None

    @classmethod
    @named(DataError)
    def from_yaml(cls, path: str | Path, benchmark: Mapping[str, Any] | None = None) -> "StreamSpec":
        """Read a stream.

        Args:
            path: A YAML file with a ``tasks`` list of paths or of mappings, or a ``benchmark``.
            benchmark: Keys that replace those of the file's ``benchmark``.

        Returns:
            The stream's description; the tasks' files are not opened.

        Raises:
            ConfigError: The file is missing or broken, a variable is unset, a key is unknown, or two names collide.
            DataError: A benchmark's folder lacks a task, or differs from its checksums.
        """
        path = Path(path)
        data = read_yaml(path)
        use = _benchmark(data, path, benchmark or {})
        entries = data.pop("tasks", None) if use is None else use.entries
        if not isinstance(entries, list) or not entries:
            given = "is missing" if entries is None else "is empty" if entries == [] else "must be a list"
            hint = nearest("tasks", data) if entries is None else ""
            raise ConfigError(f"{path}: 'tasks' {given}; list at least one data path under it{hint}")
        common = {} if use is not None else {key: data.pop(key) for key in _COMMON if key in data}
        settings = {key: expand(value, f"{path}: key {key!r}") for key, value in data.items()}
        settings = rename_settings(settings, f"{path}: ")
        if use is not None:
            settings = {**use.protocol.settings, **settings}
        tasks: list[TaskSpec] = []
        taken: dict[str, str] = {}
        for number, entry in enumerate(entries, 1):
            spec = task_spec(entry, f"{path}: task {number}", path.parent, common)
            # Folders that differ only in capitals are one folder on some file systems.
            slug = safe_name(spec.name).casefold()  # task_spec has checked that it is one
            if slug in taken:
                raise ConfigError(
                    f"{path}: task {number} {spec.name!r} has the name of {taken[slug]}; give one another 'name'"
                )
            taken[slug] = f"task {number} {spec.name!r}"
            tasks.append(spec)
        return cls(tasks, settings, path, use)

    def load_tasks(self, require_test: bool = True, limit: Any = None) -> list[Task]:
        """Read every task.

        Args:
            require_test: Refuse tasks without a test split.
            limit: Rows to keep per split of tasks that say nothing themselves.

        Returns:
            The tasks in order.

        Raises:
            DataError: A task's files cannot be used; the message names the file.
        """
        common = check_limit(limit, f"{self.path}: limit")
        return [replace(spec, limit=common | spec.limit).load(require_test) for spec in self.tasks]


class Stream:
    """Tasks in order.

    Attributes:
        tasks: The tasks.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        """Take the tasks as they come.

        Args:
            tasks: At least one task; no two with the same folder name.

        Raises:
            ConfigError: There is no task, or two names collide.
        """
        self.tasks: list[Task] = list(tasks)
        if not self.tasks:
            raise ConfigError("a stream needs at least one task; add one")
        taken: dict[str, str] = {}
        for task in self.tasks:
            key = task.slug.casefold()
            if key in taken:
                raise ConfigError(f"tasks {taken[key]!r} and {task.name!r} share a folder name; rename one of them")
            taken[key] = task.name

    @classmethod
    def from_yaml(cls, path: str | Path, require_test: bool = True) -> "Stream":
        """Read a stream and all its tasks.

        Args:
            path: The YAML file; see :meth:`StreamSpec.from_yaml`.
            require_test: Refuse tasks without a test split.

        Returns:
            The stream.

        Raises:
            ConfigError: The YAML file cannot be used.
            DataError: A task's files cannot be used.
        """
        return cls(StreamSpec.from_yaml(path).load_tasks(require_test))

    @property
    def names(self) -> list[str]:
        """The tasks' names in order."""
        return [task.name for task in self.tasks]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def _benchmark(data: dict[Any, Any], path: Path, instead: Mapping[str, Any]) -> BenchmarkUse | None:
    """Take the ``benchmark`` key out of a stream and check it."""
    if "benchmark" not in data and not instead:
        return None
    block = expand(data.pop("benchmark", None) or {}, f"{path}: benchmark")
    if "tasks" in data:
        raise ConfigError(f"{path}: has both 'benchmark' and 'tasks'; keep one of the two")
    if isinstance(block, Mapping):
        block = {**block, **instead}
    return BenchmarkUse(block, f"{path}: benchmark", path.parent)


def task_spec(entry: Any, where: str, folder: Path, common: Mapping[str, Any] | None = None) -> TaskSpec:
    """Check one entry of the ``tasks`` list; ``common`` holds what the stream says for all of them."""
    if isinstance(entry, str):
        entry = {"data": entry}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be a path or a mapping with 'data', not {entry!r}")
    entry = {**(common or {}), **entry}
    if isinstance(entry.get("name"), str):
        where += f" ({entry['name']})"
    entry = {key: expand(value, f"{where}, key {key!r}") for key, value in entry.items() if value is not None}
    for key in entry:
        if key not in _TASK_KEYS:
            raise ConfigError(f"{where}: {unknown(key, TASK, _TASK_KEYS)}")
    if "data" not in entry:
        raise ConfigError(f"{where}: no 'data'; give the file or folder to learn from")
    for key in ("name", "data", "eval", "test", "metric", "extract"):
        if key in entry and (not isinstance(entry[key], str) or not entry[key]):
            raise ConfigError(f"{where}: {key} must be text, not {entry[key]!r}; put it in quotes")
    for key in ("data", "eval", "test"):
        if key in entry and not entry[key].startswith("hub:"):
            entry[key] = str(beside(folder, entry[key], f"{where}: {key}"))
    entry.setdefault("name", default_name(entry["data"]))
    entry["limit"] = check_limit(entry.get("limit"), f"{where}: limit")
    Columns.read(entry.get("columns"), f"{where}: columns")
    check_switch(entry.get("allow_empty"), f"{where}: allow_empty")
    try:
        # A task without examples checks the name and the numbers now rather than after hours of earlier tasks.
        Task(entry["name"], [], **{key: entry[key] for key in _CHECKED if key in entry})
    except (ConfigError, DataError) as error:
        raise ConfigError(f"{where}: {error}") from None
    return TaskSpec(**entry)

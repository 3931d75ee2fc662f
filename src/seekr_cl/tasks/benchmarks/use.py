"""A stream's ``benchmark`` block: which tasks it means, and what of it differs from the paper's way."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, DataError, nearest
from seekr_cl.placement import BENCHMARK, declare, unknown
from seekr_cl.system.paths import beside
from seekr_cl.tasks.benchmarks.checksums import Manifest
from seekr_cl.tasks.benchmarks.protocols import BENCHMARKS, Benchmark, Protocol
from seekr_cl.tasks.extraction import get_extraction


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkBlock:
    """What a stream may say of a benchmark; everything but ``name`` and ``data`` has the paper's value as default.

    Attributes:
        name: The benchmark: trace, superni, standard5 or long15.
        data: The folder that `seekr benchmark fetch` wrote, or any with `<task>/{train,test}.json`.
        variant: The edition of the data, such as 5000 or reasoning.
        order: The sequence of tasks.
        protocol: Whose metrics, lengths, answer extraction and epochs; `seekr benchmark list` names them.
        epochs: Another protocol's epochs by name, one number for all tasks, or numbers by task.
        metrics: Other metrics by task.
        extract: How the answer is found in what was generated: whole, or trace (after the rationale).
        max_new_tokens: The longest answer that is generated: one number, or numbers by task.
        only: Some tasks of the order, in the order's sequence.
        stand_ins: Tasks that take another's place, such as `{task195: task1687}`.
    """

    name: str
    data: str
    variant: str | int | None = None
    order: str | int | None = None
    protocol: str | None = None
    epochs: str | float | Mapping[str, float] | None = None
    metrics: Mapping[str, str] | None = None
    extract: str | None = None
    max_new_tokens: int | Mapping[str, int] | None = None
    only: list[str] | None = None
    stand_ins: Mapping[str, str] | None = None


_KEYS = tuple(BenchmarkBlock.__dataclass_fields__)
declare(
    BENCHMARK,
    lambda: _KEYS,
    lambda key: (
        f"it belongs to a stream's benchmark: write benchmark.{key}=VALUE, or benchmark: {{{key}: VALUE}} in YAML"
    ),
)


def get_benchmark(name: Any, where: str = "benchmark") -> Benchmark:
    """The benchmark of that name.

    Raises:
        ConfigError: naming the nearest known one.
    """
    if not isinstance(name, str) or name not in BENCHMARKS:
        raise ConfigError(
            f"{where}: benchmark {name!r} is unknown{nearest(str(name), BENCHMARKS)} (known: {', '.join(BENCHMARKS)})"
        )
    return BENCHMARKS[name]


class BenchmarkUse:
    """One use of a benchmark.

    Attributes:
        benchmark: the benchmark.
        protocol: whose way is followed.
        variant: the edition of the data, or ``None`` where there is one only.
        order: the name of the sequence.
        tasks: the tasks' names in order, stand-ins in place.
        entries: entries for a stream's ``tasks`` list.
    """

    def __init__(self, block: Any, where: str, folder: Path) -> None:
        """Check a block.

        Args:
            block: the mapping, its variables filled in.
            where: file and key, for error messages.
            folder: what a relative ``data`` is relative to.

        Raises:
            ConfigError: for a key or value that cannot be used; nothing is ignored.
            DataError: if a task's folder is missing, or the folder was fetched as something else.
        """
        if not isinstance(block, Mapping):
            raise ConfigError(f"{where}: must be a mapping such as {{name: trace, data: DIR}}, not {block!r}")
        for key in block:
            if key not in _KEYS:
                raise ConfigError(f"{where}: {unknown(key, BENCHMARK, _KEYS)}")
        given = {str(key): value for key, value in block.items() if value is not None}
        self.benchmark = get_benchmark(given.get("name"), where)
        if not isinstance(given.get("data"), str):
            raise ConfigError(f"{where}: no 'data'; give the folder that 'seekr benchmark fetch' wrote")
        self._where, self._given = where, given
        self._protocol_name = _pick(given.get("protocol"), self.benchmark.protocols, f"{where}: protocol")
        self.protocol: Protocol = self.benchmark.protocols[self._protocol_name]
        self.order = _pick(given.get("order"), self.benchmark.orders, f"{where}: order")
        self.variant = self._variant()
        self.data = beside(folder, given["data"], f"{where}: data")
        self.manifest = Manifest.read(self.data)
        self._check_manifest()
        self._stand_ins = self._mapping("stand_ins", self.benchmark.orders[self.order], str, "a task's name")
        official = self._chosen()
        self.tasks = [self._stand_ins.get(task, task) for task in official]
        self.entries = self._entries()

    def _variant(self) -> str | None:
        if not self.benchmark.variants:
            if "variant" in self._given:
                raise ConfigError(f"{self._where}: variant: {self.benchmark.name} has one edition only; remove the key")
            return None
        asked = self._given.get("variant", self.benchmark.default_variant)
        return _pick(asked, dict.fromkeys(self.benchmark.variants), f"{self._where}: variant")

    def _check_manifest(self) -> None:
        if self.manifest is None:
            return
        for key, wanted in (("name", self.benchmark.name), ("variant", self.variant)):
            found = self.manifest.content.get(key)
            same_data = key == "name" and {found, wanted} == {"standard5", "long15"}
            if found != wanted and not (same_data or (key == "variant" and found is None)):
                raise DataError(f"{self.manifest.path}: holds {key} {found!r}, the stream wants {wanted!r}; fetch that")

    def _chosen(self) -> list[str]:
        tasks = list(self.benchmark.orders[self.order])
        only = self._given.get("only")
        if only is None:
            return tasks
        if not isinstance(only, list) or not only:
            raise ConfigError(f"{self._where}: only: must be a list of tasks, not {only!r}")
        for task in only:
            self._known(task, tasks, "only")
        return [task for task in tasks if task in only]

    def _known(self, task: Any, tasks: Any, key: str) -> None:
        if task not in tasks:
            raise ConfigError(
                f"{self._where}: {key}: order {self.order} has no task {task!r}{nearest(str(task), tasks)}"
            )

    def _mapping(self, key: str, tasks: Any, kind: Any, wanted: str) -> dict[str, Any]:
        value = self._given.get(key) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._where}: {key}: must map tasks to values, not {value!r}")
        for task, one in value.items():
            self._known(task, tasks, key)
            if isinstance(one, bool) or not isinstance(one, kind):
                raise ConfigError(f"{self._where}: {key}: {task} must be {wanted}, not {one!r}")
        return dict(value)

    def _entries(self) -> list[dict[str, Any]]:
        epochs, limits = self._epochs(), self._limits()
        metrics = self._mapping("metrics", self.tasks, str, "a metric's name")
        extract = self._given.get("extract", self.protocol.extract)
        try:
            get_extraction(extract)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error}") from None
        return [
            {
                "name": task,
                "data": str(self._folder(task)),
                "metric": metrics.get(task, self.protocol.metric_of(task)),
                "epochs": epochs[task],
                "max_new_tokens": limits.get(task, self.protocol.max_new_tokens),
                "extract": extract,
            }
            for task in self.tasks
        ]

    def _epochs(self) -> dict[str, float]:
        given, standing = self._given.get("epochs"), {new: old for old, new in self._stand_ins.items()}
        own = {}
        protocol = self.protocol
        if isinstance(given, str):
            protocol = self.benchmark.protocols[
                _pick(given, self.benchmark.protocols, f"{self._where}: epochs")
            ]  # fmt: skip
        elif isinstance(given, Mapping):
            own = self._mapping("epochs", self.tasks, int | float, "a number")
        elif given is not None:
            own = dict.fromkeys(self.tasks, given)  # a task's own check names what is not a number
        usual = {task: protocol.epochs_of(standing.get(task, task), self.order) for task in self.tasks}
        return {task: own.get(task, usual[task]) for task in self.tasks}

    def _limits(self) -> dict[str, int]:
        given = self._given.get("max_new_tokens")
        if given is None or isinstance(given, Mapping):
            return self._mapping("max_new_tokens", self.tasks, int, "a whole number")
        return dict.fromkeys(self.tasks, given)

    def _folder(self, task: str) -> Path:
        for name in (task, *self.benchmark.aliases.get(task, ())):
            if (self.data / name).is_dir():
                return self.data / name
        longer = sorted(self.data.glob(f"{task}_*")) if self.data.is_dir() else []
        if len(longer) == 1:
            return longer[0]
        instead = self.benchmark.stand_ins.get(task)
        hint = f", or say 'stand_ins: {{{task}: {instead}}}'" if instead else ""
        raise DataError(
            f"{self.data}: no folder for task {task}; fetch it with 'seekr benchmark fetch {self.benchmark.name}'{hint}"
        )

    def describe(self, settings: Mapping[str, Any], limit: Any = None) -> dict[str, Any]:
        """What goes into ``run.json`` and ``scores.json``.

        Args:
            settings: the run's settings, whatever a stream and the command line made of the paper's.
            limit: the stream's ``limit``.

        Returns:
            Name, variant, order, tasks, whose protocol and epochs, where the data come from, and ``deviations``: a
            list of ``{what, official, here}``. What the protocol does not say is no deviation.
        """
        protocol, given = self.protocol, self._given
        deviations = [*self._deviating_tasks(), *self._deviating_data(limit)]
        for key, official in protocol.settings.items():
            if settings.get(key) != official:
                deviations.append((key, official, settings.get(key)))
        deviations += protocol.fixed
        epochs = given.get("epochs", self._protocol_name)
        return {
            "name": self.benchmark.name,
            "variant": self.variant,
            "order": self.order,
            "tasks": self.tasks,
            "protocol": self._protocol_name,
            "epochs_of": epochs if isinstance(epochs, str) else "this stream",
            "epochs": {entry["name"]: entry["epochs"] for entry in self.entries},
            "decoding": {"greedy": True, "stop": "end-of-text token"}
            | {"max_new_tokens": {entry["name"]: entry["max_new_tokens"] for entry in self.entries}},
            "data": None if self.manifest is None else self.manifest.origin(),
            "deviations": [{"what": what, "official": was, "here": now} for what, was, now in deviations],
        }

    def _deviating_tasks(self) -> list[tuple[str, Any, Any]]:
        found: list[tuple[str, Any, Any]] = []
        official = list(self.benchmark.orders[self.order])
        for old, new in self._stand_ins.items():
            found.append((f"task {old}", old, new))
        if len(self.tasks) < len(official):
            found.append(("tasks", official, self.tasks))
        back = {new: old for old, new in self._stand_ins.items()}
        for entry in self.entries:
            task = entry["name"]
            wanted = {
                "metric": self.protocol.metric_of(task),
                "max_new_tokens": self.protocol.max_new_tokens,
                "extract": self.protocol.extract,
                "epochs": self.protocol.epochs_of(back.get(task, task), self.order),
            }
            found += [(f"{key} of {task}", was, entry[key]) for key, was in wanted.items() if entry[key] != was]
        return found

    def _deviating_data(self, limit: Any) -> list[tuple[str, Any, Any]]:
        found: list[tuple[str, Any, Any]] = []
        if limit:
            found.append(("rows", "all", dict(limit) if isinstance(limit, Mapping) else limit))
        if self.manifest is None:
            return [*found, ("data", "fetched, rows and checksums checked", "not fetched, nothing checked")]
        others = set(self.benchmark.tasks) - set(self.tasks)
        notes = [note for note in self.manifest.content["notes"] if note.partition(":")[0] not in others]
        return found + [("data", "as published", note) for note in notes]


def _pick(asked: Any, known: Mapping[str, Any], where: str) -> str:
    name = next(iter(known)) if asked is None else str(asked)
    if isinstance(asked, bool) or name not in known:
        raise ConfigError(f"{where}: {asked!r} is unknown{nearest(name, known)} (known: {', '.join(known)})")
    return name

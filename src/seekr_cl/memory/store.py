"""ReplayMemory: a directory of old samples with their teachers' signals that outlives process, run and machine.

    memory/
      manifest.json                which generations there are and which one is current; written last, by rename
      generations/0001.json        one generation in full
      0001-<task>.jsonl            texts of the samples kept from the first task
      0001-<task>.safetensors      their token ids, logits, attention rows
      importance-0001.safetensors  head importance after the first task
      teacher-0001.safetensors     the adapter after the first task, where signals are asked of it instead of kept
      state-0001.safetensors       what the method carries on beside samples (EWC's Fisher information, ...)

Files are never changed once written; generations share them. ``lineage`` is about generations, ``shard`` about a
task's two files, ``upkeep`` about what else can be done to a memory. docs/memory.md is for the people who own one.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.heads import HeadImportance
from seekr_cl.memory.lineage import MANIFEST, Generation, Lineage, heads_of, is_new, settled
from seekr_cl.memory.method_state import (
    MethodState,
    load_method_state,
    load_teacher,
    write_method_state,
    write_teacher,
)
from seekr_cl.memory.samples import MemoryTask, ReplaySample, TaskSamples, Totals
from seekr_cl.memory.shard import StoredSamples, write_shard
from seekr_cl.os_errors import named
from seekr_cl.system.files import checked_path, file_above, file_record, write_tensors
from seekr_cl.tasks.task import safe_name

_LONGEST_SLUG = 60
_SUMS = {"sensitivity": "sensitivity_NH", "forgettability": "forgettability_NH", "product": "product_NH"}


@dataclass(slots=True)
class ReplayMemory:
    """The memory of one model; open it with ``ReplayMemory.open``.

    Attributes:
        path: its directory.
        generation: how many commits led to what it is now; 0 is a memory that does not exist on disk yet.
        tasks: what is kept from each task, oldest first. A forgotten task stays in its place without samples.
        importance: head importance so far, if the method keeps it.
        method_state: what the method carries on beside samples, if it does.
        model_sha256: hash of the model that goes with this generation.
        tokenizer_sha256: hash of the tokenizer its token ids come from.
    """

    path: Path
    generation: int = 0
    tasks: list[MemoryTask] = field(default_factory=list)
    importance: HeadImportance | None = None
    method_state: MethodState | None = None
    model_sha256: str | None = None
    tokenizer_sha256: str | None = None
    _lineage: Lineage | None = None
    _current: Generation | None = None

    @classmethod
    @named(MemoryFormatError)
    def open(cls, path: str | os.PathLike[str], *, create: bool = False, verify: bool = False) -> Self:
        """Opens a memory. Samples stay on disk; each is read and checked when it is asked for.

        Checked at once: names, sizes, headers, the hashes of manifest, generation and importance. Checked at each
        read: the sample's checksum and that its tensors fit each other. So opening takes the same time and RAM
        however many samples there are, and a damaged one is an error when it is read.

        Args:
            path: the directory.
            create: a directory that is missing or empty is an empty memory instead of an error.
            verify: read everything once now: the hash of every file and every sample, in one pass over the files.

        Raises:
            MemoryFormatError: naming the file that is missing, truncated, altered, unreadable or of another format.
        """
        folder = Path(path)
        try:
            return settled(folder, lambda: cls._open(folder, create, verify))
        except OSError as error:
            where = error.filename or folder
            raise MemoryFormatError(f"{where}: cannot be read ({error.strerror}); change its permissions") from error

    @classmethod
    def _open(cls, folder: Path, create: bool, verify: bool) -> Self:
        above = file_above(folder)
        if above is not None:
            raise MemoryFormatError(f"{folder}: {above} is a file, not a folder; choose another folder")
        if not (folder / MANIFEST).exists():
            if create and is_new(folder):
                return cls(folder)
            raise MemoryFormatError(
                f"{folder}: holds no {MANIFEST}, so it is not a replay memory; name an existing memory or a new folder"
            )
        lineage = Lineage.read(folder)
        if lineage.current is None:
            # What a crash during the first commit left behind.
            if create:
                return cls(folder, _lineage=lineage)
            raise MemoryFormatError(f"{folder}: nothing has been committed to this memory yet; learn a task first")
        return cls._at(lineage, verify)

    @classmethod
    def _at(cls, lineage: Lineage, verify: bool = False) -> Self:
        """The memory as the current generation of a lineage says."""
        assert lineage.current is not None
        folder, current = lineage.folder, lineage.generation(lineage.current)
        source = folder / "generations" / current.record["file"]
        return cls(
            folder,
            current.number,
            [load_task(folder, record, source, verify) for record in current.tasks],
            load_importance(folder, current.content["importance"], source),
            load_method_state(folder, current.method_state, source),
            current.content["model_sha256"],
            current.content["tokenizer_sha256"],
            lineage,
            current,
        )

    def former(self) -> Self | None:
        """The memory as it was before its current generation, to look at; ``None`` if that is not kept any more."""
        assert self._current is not None
        assert self._lineage is not None
        parent = self._current.content["parent"]
        if parent is None:
            return type(self)(self.path)
        if parent["file"] not in [record["file"] for record in self._lineage.records]:
            return None
        return self._at(replace(self._lineage, current=parent["file"]))

    def reload(self) -> None:
        """Takes over what another process has committed."""
        other = type(self).open(self.path)
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    @property
    def samples(self) -> Sequence[tuple[MemoryTask, ReplaySample]]:
        """Every sample with its task, oldest task first; each is read when it is asked for."""
        return TaskSamples(self.tasks)

    @property
    def num_bytes(self) -> int:
        """Size of the current generation's files, the manifest included."""
        if self._current is None:
            return 0
        return self._current.num_bytes + (self.path / MANIFEST).stat().st_size

    @property
    def current(self) -> Generation | None:
        """The current generation as it is on disk; ``None`` before the first commit."""
        return self._current

    def check_belongs(
        self,
        model_sha256: str,
        tokenizer_sha256: str,
        *,
        former_sha256: str | None = None,
        merged_from: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Makes sure that the memory goes with this model and tokenizer.

        Args:
            model_sha256: the model's hash.
            tokenizer_sha256: the tokenizer's.
            former_sha256: the tokenizer's as older versions of this library computed it.
            merged_from: hash of the model that this one is, with its adapter merged.
            dtype: of the model's weights.

        Raises:
            MemoryFormatError: if either differs from what the memory was committed with; it names the generation and
                task whose model is wanted, and the generation that the given model belongs to if that is kept.
        """
        if self.tokenizer_sha256 not in (None, tokenizer_sha256, former_sha256):
            raise MemoryFormatError(
                f"{self.path / MANIFEST}: its token ids come from another tokenizer (vocabulary, special tokens, chat "
                "template, or what is done to a text before); use the tokenizer of the model this memory was made with"
            )
        if self._current is None or self.model_sha256 in (None, model_sha256):
            return
        wanted_dtype = self._current.content.get("dtype")
        if None not in (dtype, wanted_dtype) and dtype != wanted_dtype:
            raise MemoryFormatError(
                f"{self.path / MANIFEST}: generation {self.generation} belongs to a model in {wanted_dtype}, this one "
                f"was loaded in {dtype}; set dtype={wanted_dtype}, or begin a new memory"
            )
        if merged_from == self.model_sha256:
            self._check_mergeable()
            return
        folder = self._current.content["model_folder"]
        wanted = f"the one written with it, after task '{last_task(self._current)}'" + (f", to {folder}" * bool(folder))
        advice = "pass that one, or a new memory folder"
        kept = [] if self._lineage is None else self._lineage.all()
        other = next((one for one in reversed(kept) if one.content["model_sha256"] == model_sha256), None)
        if other is not None:
            advice += (
                f"; this model belongs to generation {other.label}, after task '{last_task(other)}': "
                f"'seekr memory rollback {self.path} --to {other.label}' goes back to it"
            )
        raise MemoryFormatError(
            f"{self.path / MANIFEST}: generation {self.generation} belongs to another model ({wanted}); {advice}"
        )

    def _check_mergeable(self) -> None:
        """Refuses a merged model where something of the memory is about the adapter.

        Raises:
            MemoryFormatError: if teachers are kept as adapters of the unmerged model.
        """
        if any(task.teacher is not None for task in self.tasks):
            raise MemoryFormatError(
                f"{self.path / MANIFEST}: its signals are asked of adapters on the base model, which a merged model is "
                "not; continue with the adapter, or begin a new memory"
            )

    @named()
    def commit(
        self,
        new_tasks: list[MemoryTask],
        *,
        importance: HeadImportance | None,
        model_sha256: str,
        tokenizer_sha256: str,
        method: dict[str, Any],
        keep: Mapping[int, Sequence[int]] | None = None,
        model_folder: str | os.PathLike[str] | None = None,
        method_state: MethodState | None = None,
        dtype: str | None = None,
    ) -> None:
        """Writes the next generation: the old tasks, ``new_tasks`` and the importance. The manifest comes last.

        Args:
            new_tasks: usually one; two when general data went in as task 0; none when only ``keep`` changes something.
            importance: head importance after these tasks.
            model_sha256: the model that was written with it.
            tokenizer_sha256: its tokenizer.
            method: name and settings, for people and for later checks.
            keep: for some of the old tasks, by their place in ``tasks``, the places of the samples that stay, in their
                old order. Earlier generations keep the others until ``gc`` removes these.
            model_folder: where the model was written, for people.
            method_state: what the method carries on beside samples.
            dtype: of the model's weights.

        Raises:
            OutputError: if something cannot be written, or another process has committed meanwhile; the former
                generation stays what it was.
            ValueError: if ``keep`` names a task or sample that is not there.
        """
        lineage = self._begin()
        records = [] if self._current is None else list(self._current.tasks)
        for place, samples in (keep or {}).items():
            records[place] = self._kept(lineage, place, list(samples), records)
        records += [_write_task(lineage, task, len(records) + number) for number, task in enumerate(new_tasks, 1)]
        parent, number = self._current, self.generation + 1
        content = {
            "generation": number,
            "parent": parent and {"file": parent.record["file"], "sha256": parent.record["sha256"]},
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "learnt": [{"name": task.name, "data_sha256": task.info.get("fingerprint")} for task in new_tasks],
            "model_sha256": model_sha256,
            "model_folder": None if model_folder is None else os.path.abspath(model_folder),
            "tokenizer_sha256": tokenizer_sha256,
            "dtype": dtype,
            "method": method,
            "versions": _versions(),
            "importance": _write_importance(lineage, importance, number),
            "method_state": write_method_state(lineage, method_state, number),
            "tasks": records,
        }
        current = lineage.write_generation(lineage.free_name(number), content)
        lineage.mark([*lineage.records, current.record], current.record["file"])
        # Read back, so that this process and a later one work with the same tensors.
        former = [] if parent is None else parent.tasks
        source = self.path / "generations" / current.record["file"]
        self.tasks = [
            self.tasks[place]
            if place < len(former) and record is former[place]
            else load_task(self.path, record, source, verify=False)
            for place, record in enumerate(records)
        ]
        self.generation, self.importance, self._current = number, importance, current
        self.method_state = load_method_state(self.path, current.method_state, source)
        self.model_sha256, self.tokenizer_sha256 = model_sha256, tokenizer_sha256

    def _begin(self) -> Lineage:
        """The lineage to commit to; a new memory gets a manifest without generations before anything else."""
        if self._current is None:
            exists = (self.path / MANIFEST).exists()
            self._lineage = Lineage.read(self.path) if exists else Lineage(self.path)
            if self._lineage.current is not None:
                raise OutputError(f"{self.path}: already holds a memory; open it and commit to that")
            if not exists:
                self._lineage.mark([], None)
        assert self._lineage is not None
        self._lineage.check_unchanged()
        self._lineage.given.clear()
        return self._lineage

    def _kept(self, lineage: Lineage, place: int, samples: list[int], records: list[dict[str, Any]]) -> dict[str, Any]:
        if not 0 <= place < len(self.tasks):
            raise ValueError(f"keep: there is no task {place}, only {len(self.tasks)}")
        task, chosen = self.tasks[place], sorted(set(samples))
        if len(chosen) != len(samples) or (chosen and not 0 <= chosen[0] <= chosen[-1] < len(task.samples)):
            raise ValueError(f"keep: samples of task {place} must be different ones below {len(task.samples)}")
        if len(chosen) == len(task.samples):
            return records[place]
        return write_samples(lineage, records[place], Chosen(task.samples, chosen), place + 1)


class Chosen(Sequence[ReplaySample]):
    """Some of a task's samples, read when they are asked for.

    Args:
        samples: of which.
        places: which, in order.
    """

    def __init__(self, samples: Sequence[ReplaySample], places: Sequence[int]) -> None:
        self._samples, self._places = samples, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One sample, or a list for a slice."""
        if isinstance(index, slice):
            return [self._samples[place] for place in self._places[index]]
        return self._samples[self._places[index]]


def last_task(generation: Generation) -> str:
    """Name of the task after which a generation was written."""
    names = generation.learnt or [task["name"] for task in generation.tasks]
    return names[-1] if names else "-"


def load_task(folder: Path, record: dict[str, Any], source: Path, verify: bool) -> MemoryTask:
    """One task of a generation.

    Args:
        folder: the memory's.
        record: what the generation says of it.
        source: the generation's file, for messages.
        verify: read all of it, instead of only names, sizes and the header.

    Raises:
        MemoryFormatError: naming the file that is not what it should be.
    """
    try:
        heads, totals = heads_of(record), Totals(**record["totals"])
    except (TypeError, ValueError) as error:
        raise MemoryFormatError(f"{source}: damaged ({error}); restore the folder from a copy") from error
    if not record["files"]:
        return MemoryTask(record["name"], [], heads, record["info"])
    texts, signals = (checked_path(folder, file, source, content=verify) for file in record["files"])
    samples = StoredSamples(texts, signals, heads, totals)
    teacher = load_teacher(folder, record.get("teacher"), source, verify)
    if verify:
        if Totals.of(samples) != totals:
            raise MemoryFormatError(f"{source}: counts of task '{record['name']}' differ from its samples'; restore it")
        for number in range(len(samples)):
            samples.text(number)
    return MemoryTask(record["name"], samples, heads, record["info"], teacher)


def load_importance(folder: Path, record: dict[str, Any] | None, source: Path) -> HeadImportance | None:
    """The head importance a generation names; the file is small and always read whole.

    Raises:
        MemoryFormatError: if it is not what it should be.
    """
    if record is None:
        return None
    path, layers = checked_path(folder, record, source), tuple(record["layers"])
    try:
        tensors = load_file(path)
        sums = [tensors[name] for name in _SUMS]
    except (KeyError, SafetensorError, OSError) as error:
        raise MemoryFormatError(f"{path}: not readable ({error}); restore it from a copy") from error
    if any(sum_NH.dim() != 2 or len(sum_NH) != len(layers) or sum_NH.shape != sums[0].shape for sum_NH in sums):
        raise MemoryFormatError(f"{path}: not one row for each of {len(layers)} layers; restore it from a copy")
    return HeadImportance(layers, *sums)


def write_samples(
    lineage: Lineage, record: dict[str, Any], samples: Sequence[ReplaySample], number: int
) -> dict[str, Any]:
    """Writes a task's samples into files of their own.

    Args:
        lineage: of the memory; its kept files are not touched.
        record: the task's; its files and totals are replaced. A task without samples has no use for its teacher.
        samples: what it is to hold.
        number: the task's number, from 1.

    Returns:
        The new record.
    """
    if not len(samples):
        rest = {key: value for key, value in record.items() if key != "teacher"}
        return {**rest, "totals": asdict(Totals()), "files": []}
    slug = safe_name(record["name"]).encode()[:_LONGEST_SLUG].decode(errors="ignore")
    stem = lineage.free_stem(f"{number:04d}-{slug}", (".jsonl", ".safetensors"))
    files = write_shard(lineage.folder / stem, samples)
    return {**record, "totals": asdict(Totals.of(samples)), "files": files}


def _write_task(lineage: Lineage, task: MemoryTask, number: int) -> dict[str, Any]:
    heads = {str(layer): heads for layer, heads in task.heads.items()}
    record: dict[str, Any] = {"name": task.name, "heads": heads, "info": task.info}
    if task.teacher is not None and len(task.samples):
        record["teacher"] = write_teacher(lineage, task.teacher, number)
    return write_samples(lineage, record, task.samples, number)


def _write_importance(lineage: Lineage, importance: HeadImportance | None, generation: int) -> dict[str, Any] | None:
    if importance is None:
        return None
    stem = lineage.free_stem(f"importance-{generation:04d}", (".safetensors",))
    path = lineage.folder / f"{stem}.safetensors"
    write_tensors(path, {name: getattr(importance, attribute) for name, attribute in _SUMS.items()})
    return {**file_record(path), "layers": list(importance.layers)}


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("seekr-cl")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "seekr-cl": own,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }

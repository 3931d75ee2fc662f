"""ReplayMemory: a directory of old samples with their teachers' signals that outlives process, run and machine.

    memory/
      manifest.json                what makes a generation exist; written last, by rename
      0001-<task>.json             texts of the samples kept from the first task
      0001-<task>.safetensors      their token ids, logits, attention rows
      importance-0001.safetensors  head importance after the first task

Files are never changed once written; the next generation's manifest lists the old ones again and one task more.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file

from seekr_cl.errors import MemoryFormatError
from seekr_cl.heads import HeadImportance
from seekr_cl.memory.files import checked_path, file_above, file_record, write_json, write_tensors
from seekr_cl.memory.samples import MemoryTask, ReplaySample, check_sample, pack, unpack
from seekr_cl.tasks.task import safe_name

FORMAT = "seekr-memory"
VERSION = 2
MANIFEST = "manifest.json"


@dataclass(slots=True)
class ReplayMemory:
    """The memory of one model; open it with ``ReplayMemory.open``.

    Attributes:
        path: its directory.
        generation: how many tasks have been committed to it; 0 is a memory that does not exist on disk yet.
        tasks: what is kept from each task, oldest first.
        importance: head importance so far, if the method keeps it.
        model_sha256: hash of the model that goes with this generation.
        tokenizer_sha256: hash of the tokenizer its token ids come from.
    """

    path: Path
    generation: int = 0
    tasks: list[MemoryTask] = field(default_factory=list)
    importance: HeadImportance | None = None
    model_sha256: str | None = None
    tokenizer_sha256: str | None = None
    _records: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False) -> Self:
        """Opens a memory and checks every file of it.

        Args:
            path: the directory.
            create: a directory that is missing or empty is an empty memory instead of an error.

        Raises:
            MemoryFormatError: naming the file that is missing, truncated, altered, unreadable or of a newer format.
        """
        folder = Path(path)
        manifest_path = folder / MANIFEST
        above = file_above(folder)
        if above is not None:
            raise MemoryFormatError(f"{folder}: {above} is a file, not a folder; choose another folder")
        if not manifest_path.exists():
            if create and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))):
                return cls(folder)
            raise MemoryFormatError(
                f"{folder}: holds no {MANIFEST}, so it is not a replay memory; name an existing memory or a new folder"
            )
        manifest = _read_manifest(manifest_path)
        try:
            memory = cls(
                folder,
                _typed(manifest["generation"], int),
                [_load_task(folder, record, manifest_path) for record in _typed(manifest["tasks"], list)],
                _load_importance(folder, manifest["importance"], manifest_path),
                _typed(manifest["model_sha256"], str),
                _typed(manifest["tokenizer_sha256"], str),
                manifest["tasks"],
            )
        except (KeyError, TypeError, AttributeError, ValueError, SafetensorError, IndexError, OSError) as error:
            if isinstance(error, MemoryFormatError):
                raise
            raise MemoryFormatError(
                f"{manifest_path}: damaged ({type(error).__name__}: {error}); restore the folder from a copy"
            ) from error
        return memory

    @property
    def samples(self) -> list[tuple[MemoryTask, ReplaySample]]:
        """Every sample with its task, oldest task first."""
        return [(task, sample) for task in self.tasks for sample in task.samples]

    @property
    def num_bytes(self) -> int:
        """Size of the current generation's files, the manifest included."""
        if not self.generation:
            return 0
        files = [file["bytes"] for record in self._records for file in record["files"]]
        extra = sum(path.stat().st_size for path in self.path.glob(f"importance-{self.generation:04d}.safetensors"))
        return sum(files) + extra + (self.path / MANIFEST).stat().st_size

    def check_belongs(self, model_sha256: str, tokenizer_sha256: str) -> None:
        """Makes sure that the memory goes with this model and tokenizer.

        Raises:
            MemoryFormatError: if either differs from what the memory was committed with.
        """
        if self.tokenizer_sha256 not in (None, tokenizer_sha256):
            raise MemoryFormatError(
                f"{self.path / MANIFEST}: its token ids come from another tokenizer; use the tokenizer of the model "
                "this memory was made with"
            )
        if self.model_sha256 not in (None, model_sha256):
            raise MemoryFormatError(
                f"{self.path / MANIFEST}: generation {self.generation} belongs to another model (the one written with "
                f"it, after task '{self.tasks[-1].name if self.tasks else '-'}'); pass that one, or a new memory folder"
            )

    def commit(
        self,
        new_tasks: list[MemoryTask],
        *,
        importance: HeadImportance | None,
        model_sha256: str,
        tokenizer_sha256: str,
        method: dict[str, Any],
        keep: dict[int, list[int]] | None = None,
    ) -> None:
        """Writes the next generation: the old tasks, ``new_tasks`` and the importance. The manifest comes last.

        Args:
            new_tasks: usually one; two when general data went in as task 0.
            importance: head importance after these tasks.
            model_sha256: the model that was written with it.
            tokenizer_sha256: its tokenizer.
            method: name and settings, for people and for later checks.
            keep: for old tasks by position, which of their samples stay; tasks that are not named keep all.

        Raises:
            OutputError: if something cannot be written; the former generation stays what it was.
        """
        generation = self.generation + 1
        records, olds = list(self._records), list(self.tasks)
        for position, chosen in (keep or {}).items():
            old = olds[position]
            olds[position] = replace(old, samples=[old.samples[number] for number in chosen])
            records[position] = self._write_task(olds[position], position + 1, f".{generation:04d}")
        for task in new_tasks:
            records.append(self._write_task(task, len(records) + 1))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "generation": generation,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "model_sha256": model_sha256,
            "tokenizer_sha256": tokenizer_sha256,
            "method": method,
            "importance": self._write_importance(importance, generation),
            "tasks": records,
        }
        write_json(self.path / MANIFEST, {**manifest, "sha256": _digest(manifest)})
        fresh = records[len(self._records) :]
        self.generation, self.importance, self._records = generation, importance, records
        self.model_sha256, self.tokenizer_sha256 = model_sha256, tokenizer_sha256
        # Read back, so that this process and a later one work with the same tensors.
        self.tasks = olds + [_load_task(self.path, record, self.path / MANIFEST) for record in fresh]

    def _write_task(self, task: MemoryTask, number: int, suffix: str = "") -> dict[str, Any]:
        stem = f"{number:04d}-{safe_name(task.name)}{suffix}"
        texts, tensors = self.path / f"{stem}.json", self.path / f"{stem}.safetensors"
        write_json(texts, [{"prompt": sample.prompt, "completion": sample.completion} for sample in task.samples])
        write_tensors(tensors, pack(task.samples))
        return {
            "name": task.name,
            "samples": len(task.samples),
            "heads": {str(layer): heads for layer, heads in task.heads.items()},
            "info": task.info,
            "files": [file_record(texts), file_record(tensors)],
        }

    def _write_importance(self, importance: HeadImportance | None, generation: int) -> dict[str, Any] | None:
        if importance is None:
            return None
        path = self.path / f"importance-{generation:04d}.safetensors"
        fields = {
            "sensitivity": importance.sensitivity_NH,
            "forgettability": importance.forgettability_NH,
            "product": importance.product_NH,
        }
        write_tensors(path, fields)
        return {**file_record(path), "layers": list(importance.layers)}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MemoryFormatError(f"{path}: not readable as JSON ({error}); restore the folder from a copy") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MemoryFormatError(f"{path}: not the manifest of a replay memory ('format' is not '{FORMAT}')")
    if manifest.get("version") != VERSION:
        raise MemoryFormatError(
            f"{path}: format version {manifest.get('version')!r}, this release reads {VERSION}; update seekr-cl"
        )
    # The other files' hashes stand in the manifest; its own keeps a flipped digit from choosing other heads.
    if manifest.pop("sha256", None) != _digest(manifest):
        raise MemoryFormatError(f"{path}: its content differs from its own sha256; restore the folder from a copy")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _typed(value: Any, kind: type) -> Any:
    """The value, if it is of that type and no subclass (JSON's ``true`` is not a count)."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def _load_task(folder: Path, record: dict[str, Any], source: Path) -> MemoryTask:
    texts_path, tensors_path = (checked_path(folder, file, source) for file in record["files"])
    heads = {int(layer): [_typed(head, int) for head in heads] for layer, heads in record["heads"].items()}
    try:
        samples = unpack(load_file(tensors_path), json.loads(texts_path.read_text(encoding="utf-8")))
        for sample in samples:
            check_sample(sample, heads)
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError, IndexError, RuntimeError) as error:
        raise MemoryFormatError(
            f"{tensors_path}: does not hold the samples of {texts_path.name} ({type(error).__name__}: {error}); "
            "restore the folder from a copy"
        ) from error
    if len(samples) != _typed(record["samples"], int):
        raise MemoryFormatError(f"{texts_path}: {len(samples)} samples where the manifest says {record['samples']}")
    return MemoryTask(_typed(record["name"], str), samples, heads, _typed(record["info"], dict))


def _load_importance(folder: Path, record: dict[str, Any] | None, source: Path) -> HeadImportance | None:
    if record is None:
        return None
    path = checked_path(folder, record, source)
    layers = tuple(_typed(layer, int) for layer in record["layers"])
    try:
        tensors = load_file(path)
        sums = [tensors[name] for name in ("sensitivity", "forgettability", "product")]
    except (KeyError, SafetensorError) as error:
        raise MemoryFormatError(f"{path}: not readable ({error}); restore it from a copy") from error
    if any(sum_NH.dim() != 2 or len(sum_NH) != len(layers) or sum_NH.shape != sums[0].shape for sum_NH in sums):
        raise MemoryFormatError(f"{path}: not one row for each of {len(layers)} layers; restore it from a copy")
    return HeadImportance(layers, *sums)

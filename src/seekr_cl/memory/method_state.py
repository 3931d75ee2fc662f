"""What a method carries from task to task beside samples: a Fisher diagonal, anchors, gradient directions, prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seekr_cl.errors import MemoryFormatError
from seekr_cl.memory.lineage import Lineage
from seekr_cl.system.files import checked_path, file_record, tensor_bytes, write_tensors


@dataclass(frozen=True, slots=True)
class MethodState:
    """The state of one method after a task.

    Attributes:
        method: the name of the method it belongs to.
        tensors: by name; of a state on disk they are read, and their hash is checked, when they are asked for.
        content: JSON facts.
    """

    method: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file of a memory, read whole when the first is asked for: they may be as large as the model.

    Args:
        folder: the memory's.
        record: of the file.
        source: the generation's file, for messages.
    """

    def __init__(self, folder: Path, record: dict[str, Any], source: Path) -> None:
        self._folder, self._record, self._source = folder, record, source
        self._read: dict[str, Tensor] | None = None
        checked_path(folder, record, source, content=False)

    def read(self) -> dict[str, Tensor]:
        """All of them.

        Raises:
            MemoryFormatError: if the file is not what it was.
        """
        if self._read is None:
            self._read = self.unkept()
        return self._read

    def unkept(self) -> dict[str, Tensor]:
        """All of them, read anew: for files of which there are too many to be held.

        Raises:
            MemoryFormatError: if the file is not what it was.
        """
        path = checked_path(self._folder, self._record, self._source)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise MemoryFormatError(f"{path}: not readable ({error}); restore it from a copy") from error

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return int(self._record["bytes"])

    def __getitem__(self, name: str) -> Tensor:
        return self.read()[name]

    def __iter__(self) -> Any:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())


def load_method_state(folder: Path, record: dict[str, Any] | None, source: Path) -> MethodState | None:
    """The state a generation names.

    Raises:
        MemoryFormatError: if its file is missing or has another size; its content is checked when it is read.
    """
    if record is None:
        return None
    return MethodState(record["method"], StoredTensors(folder, record, source), record["content"])


def load_teacher(folder: Path, record: dict[str, Any] | None, source: Path, verify: bool) -> StoredTensors | None:
    """The adapter that a task keeps as its teacher, if it keeps one.

    Raises:
        MemoryFormatError: if its file is missing or has another size, or under ``verify`` another content.
    """
    if record is None:
        return None
    tensors = StoredTensors(folder, record, source)
    if verify:
        StoredTensors(folder, record, source).read()
    return tensors


def write_teacher(lineage: Lineage, teacher: Mapping[str, Tensor], number: int) -> dict[str, Any]:
    """Writes a task's teacher; returns its record."""
    stem = lineage.free_stem(f"teacher-{number:04d}", (".safetensors",))
    path = lineage.folder / f"{stem}.safetensors"
    write_tensors(path, dict(teacher))
    return file_record(path)


def teacher_bytes(teacher: Mapping[str, Tensor] | None) -> int:
    """What a teacher takes on disk, or will take."""
    if teacher is None:
        return 0
    if isinstance(teacher, StoredTensors):
        return teacher.num_bytes
    return len(tensor_bytes(teacher))


def write_method_state(lineage: Lineage, state: MethodState | None, generation: int) -> dict[str, Any] | None:
    """Writes a state's file; returns its record."""
    if state is None:
        return None
    stem = lineage.free_stem(f"state-{generation:04d}", (".safetensors",))
    path = lineage.folder / f"{stem}.safetensors"
    write_tensors(path, dict(state.tensors))
    return {**file_record(path), "method": state.method, "content": state.content}

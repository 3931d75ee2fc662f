"""Where the learning of one task stands: which phases are behind it, and what they left that the others need."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from seekr_cl.distributed import collectives
from seekr_cl.distributed.engines import plain, split
from seekr_cl.errors import MemoryFormatError, OutputError, OutputWarning
from seekr_cl.heads import HeadImportance
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.memory.lineage import GENERATIONS, MANIFEST, Generation, Lineage
from seekr_cl.memory.sample_codec import pack, unpack
from seekr_cl.methods import Method, TaskResult
from seekr_cl.methods.base import State
from seekr_cl.models.loading import require_free
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.removal import is_made, remove_made, remove_unfinished, remove_unfinished_inside
from seekr_cl.system.stop_requests import raise_if_stop_requested
from seekr_cl.training.checkpoint import Checkpoint, Checkpoints
from seekr_cl.training.optimizer_carryover import OptimizerCarryover
from seekr_cl.training.trainer_state import put_rng_of_all, put_weights, rng_of_all

PHASES = ("general", "prepared", "training", "scored")
"""What a checkpoint can have behind it: general data scored; the samples chosen and looked at; steps; all scored."""
_WHOLE = ("carry", "next_state", "importance")
"""Parts that the memory or the next task will get, so that they are needed whole."""
_SUMS = ("sensitivity_NH", "forgettability_NH", "product_NH")


@dataclass(frozen=True, slots=True)
class Ready:
    """What is written at the end, beside model and memory.

    Attributes:
        log: the Trainer's log.
        steps: optimizer steps.
        carry: the optimizer's state for the next task, if that is carried over.
        next_state: what the method leaves for the next task beside samples.
        importance: head importance to write into the memory, if the method gave another.
    """

    log: list[dict[str, Any]]
    steps: int
    carry: OptimizerCarryover | None
    next_state: State | None
    importance: HeadImportance | None


class TaskProgress:
    """The state of one learning, taken from a checkpoint or from the beginning.

    Args:
        saves: where checkpoints go.
        identity: what is being learned, for the check when it is resumed.
        places: the folders it is learned into, for the same check.
        method: its state is saved and loaded here.
        begun: the checkpoint to go on from.

    Attributes:
        new_tasks: what the memory will get.
        kept: the chosen samples of the new task.
        retention: what the probes gave before the task, task after task.
    """

    def __init__(
        self,
        saves: Checkpoints,
        identity: dict[str, Any],
        places: dict[str, Any],
        method: Method,
        begun: Checkpoint | None,
    ) -> None:
        self.saves, self.identity, self.places, self.method, self.begun = saves, identity, places, method, begun
        self.new_tasks: list[MemoryTask] = []
        self.kept: list[ReplaySample] = []
        self.retention: list[dict[str, Any]] = []
        self._started, self._before = time.perf_counter(), 0.0
        self._last: tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None = None
        if begun is None:
            collectives.on_main(saves.clear)
            return
        state = begun.state
        self._before = state["seconds"]
        self.new_tasks = [_task(begun, number, record) for number, record in enumerate(state["tasks"])]
        self.kept = unpack(begun.tensors("kept"), state["kept"])
        method.load_state_dict(begun.tensors("method"), state["method"])
        put_rng_of_all(begun.tensors("rng"), state["rng"])

    @property
    def seconds(self) -> float:
        """Time spent on this task, that of interrupted processes up to their last checkpoint included."""
        return self._before + time.perf_counter() - self._started

    def phase_done(self, phase: str) -> bool:
        """Whether the checkpoint that was resumed from has this phase behind it, or lies in it."""
        return self.begun is not None and PHASES.index(self.begun.state["phase"]) >= PHASES.index(phase)

    def save(
        self,
        phase: str,
        content: dict[str, Any] | None = None,
        parts: dict[str, dict[str, Tensor]] | None = None,
        files: dict[str, str] | None = None,
        keep_shards: bool = False,
        pieces: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        """Writes a checkpoint, and stops here if a signal asked to.

        Args:
            phase: what is behind it.
            content: further JSON.
            parts: further tensors by part; sharded ones are allowed.
            files: further texts by file name.
            keep_shards: each process writes what it holds of sharded tensors; otherwise process 0 gets them whole.
            pieces: further tensors of which each process writes its own, by part.

        Raises:
            OutputError: if it cannot be written.
        """
        tensors, method = self.method.state_dict()
        rng, rng_content = rng_of_all()
        state = {
            "phase": phase,
            "identity": self.identity,
            "places": self.places,
            "seconds": self.seconds,
            "method": method,
            "rng": rng_content,
            "kept": _texts(self.kept),
            "retention": self.retention,
            "tasks": [
                {"name": task.name, "heads": list(task.heads.items()), "info": task.info, "texts": _texts(task.samples)}
                | {"teacher": task.teacher is not None}
                for task in self.new_tasks
            ],
        }
        tasks = {f"task-{number}": pack(task.samples) for number, task in enumerate(self.new_tasks)}
        tasks |= {f"teacher-{number}": dict(task.teacher or {}) for number, task in enumerate(self.new_tasks)}
        shared = {"method": plain(tensors), "kept": pack(self.kept), "rng": rng}
        whole, own = {}, dict(pieces or {})
        for part, tensors in (parts or {}).items():
            whole[part], kept = split(tensors, keep_shards and part not in _WHOLE)
            own |= {part: kept} if kept else {}
        self.saves.save(state | (content or {}), shared | tasks | whole, files, own)
        self._last = content or {}, {part: whole[part] for part in _WHOLE if part in whole}
        fault_point(f"learn.{phase}")
        if phase != "training":
            raise_if_stop_requested()

    def save_training(
        self,
        content: dict[str, Any],
        parts: dict[str, dict[str, Tensor]],
        files: dict[str, str],
        keep_shards: bool,
        pieces: dict[str, dict[str, Tensor]],
    ) -> None:
        """A checkpoint between two steps, or after the last."""
        self.save("training", {"trainer": content}, parts, files, keep_shards, pieces)

    def ready(self, model: nn.Module) -> Ready:
        """What the last phase gave; the model gets its weights where they come from a checkpoint."""
        if self.phase_done("scored"):
            assert self.begun is not None
            state, parts = self.begun.state, {part: self.begun.tensors(part) for part in _WHOLE}
            put_weights(model, self.begun.whole("weights"))
        else:
            assert self._last is not None
            state, parts = self._last
        carry = OptimizerCarryover(parts["carry"]) if state["carries"] else None
        next_state = None if state["next_state"] is None else (parts["next_state"], state["next_state"])
        layers = state["importance"]
        importance = None if layers is None else HeadImportance(tuple(layers), **parts["importance"])
        return Ready(state["log"], state["steps"], carry, next_state, importance)


def result_state(result: TaskResult) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What a method left beside what the memory keeps, for the checkpoint ``scored``: JSON, and tensors by part."""
    state, importance = result.next_state, result.importance
    content = {
        "next_state": None if state is None else state[1],
        "importance": None if importance is None else list(importance.layers),
    }
    tensors = {name: getattr(importance, name) for name in _SUMS} if importance is not None else {}
    return content, {"next_state": {} if state is None else dict(state[0]), "importance": tensors}


def open_memory(place: Path) -> ReplayMemory:
    """Opens the memory, or a new one, and reads all of it once.

    Raises:
        MemoryFormatError: if it is damaged or no memory.
    """
    collectives.on_main(lambda: _read(place))
    return ReplayMemory.open(place, create=True)


def _read(place: Path) -> None:
    ReplayMemory.open(place, create=True, verify=True)


def tidy(place: Path) -> None:
    """Removes what killed processes had not completed of a memory that this one holds."""
    remove_unfinished(place)
    for folder in (place, place / GENERATIONS):
        remove_unfinished_inside(folder)


def is_uncommitted(place: Path, former: Generation | None) -> bool:
    """Whether it is certain that a commit which failed had failed before its generation came into being.

    Only the manifest is asked: that something else cannot be read says nothing of it.

    Args:
        place: the memory's folder.
        former: its generation before.
    """
    try:
        if not (place / MANIFEST).exists():
            return former is None
        return Lineage.read(place).current == (former and former.record["file"])
    except (OSError, MemoryFormatError):
        return False


def before_lost_model(
    task: str, fingerprint: str, store: ReplayMemory, output: Path, begun: Checkpoint | None
) -> ReplayMemory | None:
    """The memory to learn with once more where it has gone on, its model is gone, and what both came from is there.

    Args:
        task: name of the task that is to be learned.
        fingerprint: of its data.
        store: the memory as it is.
        output: where the model would be.
        begun: the checkpoint of the learning.

    Returns:
        The memory before its last generation; ``None`` if that is not how things are.
    """
    if begun is None or begun.state["phase"] != "scored":
        return None
    if begun.state["identity"]["generation"] + 1 != store.generation:
        return None
    if not store.tasks or (store.tasks[-1].name, store.tasks[-1].info.get("fingerprint")) != (task, fingerprint):
        return None
    return None if output.exists() and (not output.is_dir() or any(output.iterdir())) else store.former()


def tidy_up(saves: Checkpoints) -> None:
    """Removes the checkpoints of what is written; one that stays is a warning, and goes with the next command here."""
    try:
        saves.clear()
    except OutputError as error:
        warnings.warn(f"{error}; model and memory are written", OutputWarning, stacklevel=2)


def make_room(output: Path) -> None:
    """Removes a model that was written without the generation of the memory that belongs to it.

    Raises:
        OutputError: if the output holds something that is not known to be that.
    """
    remove_unfinished(output)
    if is_made(output):
        remove_made(output)
    require_free(output)


def _texts(samples: Sequence[ReplaySample]) -> list[dict[str, str]]:
    return [{"prompt": sample.prompt, "completion": sample.completion} for sample in samples]


def _task(begun: Checkpoint, number: int, record: dict[str, Any]) -> MemoryTask:
    tensors = begun.tensors(f"task-{number}")
    teacher = begun.tensors(f"teacher-{number}") if record.get("teacher") else None
    heads = {layer: list(chosen) for layer, chosen in record["heads"]}
    return MemoryTask(record["name"], unpack(tensors, record["texts"]), heads, record["info"], teacher)

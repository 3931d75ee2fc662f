"""What each task said of the attention heads: its own part of the importance that a memory sums over tasks."""

from pathlib import Path

from torch import Tensor

from seekr_cl.errors import SeekrError
from seekr_cl.heads import HeadImportance
from seekr_cl.memory.lineage import Generation
from seekr_cl.memory.store import load_importance
from seekr_cl.report.html.data import Heads

MEASURES = {
    "importance": "I: sensitivity times forgettability, both summed over the tasks so far (eq. 10)",
    "sensitivity": "S̃: how much the loss depends on the head's attention, normalized within its layer (eq. 8)",
    "forgettability": "F: how much the head's attention changed while the task was learnt (eq. 9)",
}


def read_heads(folder: Path, generations: list[Generation], notes: list[str]) -> list[Heads]:
    """Maps of each generation's last task.

    Args:
        folder: the memory's.
        generations: of its current line, oldest first.
        notes: gets a line for what cannot be read.
    """
    found: list[Heads] = []
    former: HeadImportance | None = None
    for one in generations:
        source = folder / "generations" / one.record["file"]
        try:
            importance = load_importance(folder, one.content["importance"], source)
        except SeekrError as error:
            notes.append(f"heads after {'+'.join(one.learnt) or one.label}: {error}")
            importance = None
        if not one.tasks or one.tasks[-1]["name"] not in one.learnt:
            former = importance or former
            continue
        record = one.tasks[-1]
        chosen = {int(layer): [int(head) for head in heads] for layer, heads in record["heads"].items()}
        maps: dict[str, list[list[float]]] = {}
        layers: tuple[int, ...] = tuple(sorted(chosen))
        if importance is not None:
            layers = importance.layers
            maps = {
                "importance": importance.scores().tolist(),
                "sensitivity": _own(importance.sensitivity_NH, None if former is None else former.sensitivity_NH),
                "forgettability": _own(
                    importance.forgettability_NH, None if former is None else former.forgettability_NH
                ),
            }
            former = importance
        if maps or chosen:
            found.append(Heads(record["name"], layers, maps, chosen))
    return found


def _own(sum_NH: Tensor, former_NH: Tensor | None) -> list[list[float]]:
    """This task's part of a sum."""
    if former_NH is not None and former_NH.shape == sum_NH.shape:
        sum_NH = sum_NH - former_NH
    own: list[list[float]] = sum_NH.tolist()
    return own

"""A memory's bytes by kind and task, and its generations."""

from pathlib import Path
from typing import Any

from seekr_cl.errors import SeekrError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.lineage import Generation, Lineage
from seekr_cl.memory.shard import StoredSamples
from seekr_cl.report.html.data import Memory


def read_memory(folder: Path, notes: list[str]) -> tuple[Memory | None, list[Generation]]:
    """Bytes and lineage of a memory.

    Args:
        folder: the memory's.
        notes: gets a line if it cannot be read.

    Returns:
        What the report says of it, and the generations of its current line.
    """
    try:
        memory = ReplayMemory.open(folder)
        current = memory.current
        assert current is not None
        line = Lineage.read(folder).line()
        tasks, samples = {}, {}
        for number, (task, record) in enumerate(zip(memory.tasks, current.tasks), 1):
            name = task.name if task.name not in tasks else f"{task.name} ({number})"
            samples[name] = len(task.samples)
            tasks[name] = _by_kind(task.samples, record)
        shared = {
            kind: int(record["bytes"])
            for kind, record in (
                ("head importance", current.content["importance"]),
                ("state of the method", current.method_state),
            )
            if record
        }
        counted = sum(shared.values()) + sum(sum(kinds.values()) for kinds in tasks.values())
        shared["manifest and generation"] = max(0, memory.num_bytes - counted)
        order = sorted(line, key=lambda one: one.number)
        return Memory(tasks, shared, samples, [_describe(one) for one in order], memory.num_bytes), order
    except (SeekrError, OSError, KeyError, TypeError, AssertionError) as error:
        notes.append(f"memory: {error}")
        return None, []


def _by_kind(samples: Any, record: dict[str, Any]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    if isinstance(samples, StoredSamples):
        kinds = samples.bytes_by_kind()
    if record.get("teacher"):
        kinds["teacher (adapter)"] = int(record["teacher"]["bytes"])
    return kinds


def _describe(one: Generation) -> dict[str, Any]:
    return {
        "label": one.label,
        "learnt": list(one.learnt),
        "written": one.content["written"],
        "samples": sum(task["totals"]["samples"] for task in one.tasks),
        "bytes": one.num_bytes,
        "model": one.content["model_sha256"],
        "method": one.content["method"].get("name", "-"),
        "versions": one.content.get("versions") or {},
        "settings": one.content["method"],
        "model_folder": one.content.get("model_folder"),
    }

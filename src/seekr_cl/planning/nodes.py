"""Many GPUs and many tasks on paper: what each process holds, what grows, and which term stops being small first."""

from dataclasses import dataclass

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.planning.plan import WIDTHS, Plan

SMALL = 0.1
"""A term is small as long as it is at most this part of what it is measured by."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines.

    Attributes:
        nodes: how many.
        gpus: on each.
        memory: bytes of one GPU.
    """

    nodes: int
    gpus: int
    memory: int

    @property
    def processes(self) -> int:
        """One a GPU."""
        return self.nodes * self.gpus


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that grows.

    Attributes:
        name: what it is.
        value: bytes, or passes of an example.
        room: what it is measured by, in the same unit.
        kind: ``bytes`` or ``passes``.
        answer: what the code does about it, or what to set.
    """

    name: str
    value: float
    room: float
    kind: str
    answer: str

    @property
    def small(self) -> bool:
        """Whether the term is negligible."""
        return self.value <= SMALL * self.room


def terms(plan: Plan, config: SeekrConfig, cluster: Cluster) -> list[Term]:
    """The terms of FSDP2 with AdamW on these machines, each against its room.

    Activations are not among them: they depend on the model's code and on checkpointing.
    """
    one, processes = WIDTHS[config.dtype], cluster.processes
    weights = float(plan.shape.parameters * one)
    # Weights, gradients and the two moments, all sharded; under mixed precision the first are kept in float32.
    state = plan.shape.parameters * (16 if config.bf16 or config.fp16 else 4 * one) / processes
    most, last = max(plan.kept, default=0), sum(plan.kept[:-1])
    epochs = plan.work.epochs[-1]
    new = plan.work.examples[-1] * epochs
    settings = config.replay
    by_volume = settings.every is None and settings.share is None
    replayed = last * epochs if by_volume else min(float(plan.steps.replayed), new)
    if not plan.steps.replayed:
        replayed = 0.0
    found = [
        Term("weights, gradients, optimizer of a process (GPU)", state, cluster.memory, "bytes", "sharded; more GPUs"),
        Term(
            "the whole model of a process that generates (GPU)",
            weights,
            cluster.memory,
            "bytes",
            "in seekr run and evaluate; seekr learn can load it once, sharded from the beginning",
        ),
        Term(
            "a replay step's teachers and tiles (GPU)",
            plan.chosen.vram,
            cluster.memory,
            "bytes",
            "each process reads its share; query_budget, attention_top_k, replay.batch_size",
        ),
        Term(
            "rows from before the task (RAM of a process)",
            plan.chosen.held / processes,
            cluster.memory,
            "bytes",
            "each process keeps those of its share",
        ),
        Term(
            "scoring a task's kept samples, beside its training",
            most * plan.steps.scoring / processes,
            new / processes,
            "passes",
            "shared by the processes",
        ),
        Term(
            "replay in the last task, beside its own examples",
            replayed,
            new,
            "passes",
            "grows with every task; replay.every or replay.share bounds it" if by_volume else "bounded by the cadence",
        ),
        Term(
            "the memory on the disk, beside one checkpoint",
            plan.chosen.total + plan.overhead.carried,
            plan.shape.parameters * 12.0,
            "bytes",
            "mapped, read sample by sample; memory.max_bytes bounds it",
        ),
    ]
    own = plan.overhead.device
    if own:
        found.append(
            Term(f"what {plan.method} holds (GPU)", own, cluster.memory, "bytes", "not sharded; peft makes it small")
        )
    return found


def crossing(plan: Plan) -> int | None:
    """The first task in which replaying every kept sample once an epoch is as much work as the task itself."""
    if not plan.steps.replayed:
        return None
    before = 0
    for number, (kept, examples) in enumerate(zip(plan.kept, plan.work.examples), start=1):
        if before >= examples:
            return number
        before += kept
    return None

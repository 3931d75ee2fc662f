"""The state of learning one task: what it was given, and what its phases have made of it so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods import Context, Method
from seekr_cl.models.source import ModelSource
from seekr_cl.tasks import Encoded, Encoder, Example, Task
from seekr_cl.training.checkpoint import Checkpoint, Checkpoints
from seekr_cl.training.probing import ProbeSet
from seekr_cl.training.task_progress import TaskProgress
from seekr_cl.training.tracker import Tracker
from seekr_cl.training.trainer import SeekrTrainer

LOG = "training_log.json"
"""The Trainer's log lines, beside the model."""


@dataclass(frozen=True, slots=True)
class LearnResult:
    """What learning a task gave.

    Attributes:
        model: the model, in memory; ``None`` where each process has only its rows of it.
        tokenizer: its tokenizer.
        seconds: training and scoring, without loading.
        steps: optimizer steps.
        log: the Trainer's log lines: loss terms, gradient shares.
        cut: how many prompts were truncated on the left.
        training: learning rate, scheduler, optimizer and steps, and where each comes from; the memory has it too.
        retention: what probes of old tasks and of the new one gave before, during and after; ``retention.json``.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    seconds: float
    steps: int
    log: list[dict[str, Any]]
    cut: int
    training: dict[str, Any] = field(default_factory=dict)
    retention: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Learning:
    """One task being learned; each phase of ``phases`` reads what the earlier ones have set.

    Attributes:
        source: the model to begin with.
        tasks: the task; several for a method that trains on all at once.
        store: the memory as it was before the task.
        output: folder of the new model.
        config: all settings.
        callbacks: the Trainer's.
        saves: where checkpoints go.
        begun: the checkpoint to go on from.
        resume: whether leftovers of an interrupted learning are to be cleared away.
        probed: samples of each task that are probed before and after.
        tracker: is told where the learning is.
        committed: the memory with this task already in it, where only its model is missing.
        network: the model in training; set by ``load``, as are the next five.
        tokenizer: its tokenizer.
        is_sharded_early: whether process 0 alone loaded the weights and the others got their rows.
        tokenizer_sha256: the tokenizer's hash.
        weights_dtype: the dtype the weights were loaded in.
        identity: what a resumed learning must share with the one it continues.
        context: what the method works with; set by ``prepare``, as are the next three.
        encoder: turns examples into tokens.
        trained: examples and their tokens, for each task.
        probes: what is probed, with what it gave before.
        method: the method, attached to the model until its phases are over.
        progress: which phases are complete, and what they gave.
        learned: each task's tokens as the method trains on them; set by ``rewrite``.
        trainer: set by ``train``.
        frozen: weights that are not trained because of ``train``.
    """

    source: ModelSource
    tasks: list[Task]
    store: ReplayMemory
    output: Path
    config: SeekrConfig
    callbacks: Sequence[TrainerCallback]
    saves: Checkpoints
    begun: Checkpoint | None
    resume: bool
    committed: ReplayMemory | None = None
    probed: int = 0
    tracker: Tracker = field(default_factory=Tracker)

    network: Any = field(init=False)
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    is_sharded_early: bool = field(init=False)
    tokenizer_sha256: str = field(init=False)
    weights_dtype: str = field(init=False)
    identity: dict[str, Any] = field(init=False)

    context: Context = field(init=False)
    encoder: Encoder = field(init=False)
    trained: list[tuple[list[Example], list[Encoded]]] = field(init=False)
    probes: list[ProbeSet] = field(init=False)
    method: Method = field(init=False)
    progress: TaskProgress = field(init=False)

    learned: list[list[Encoded]] = field(init=False)
    trainer: SeekrTrainer = field(init=False)
    frozen: list[nn.Parameter] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The task's name in the memory."""
        return name_of(self.tasks)


def name_of(tasks: Sequence[Task]) -> str:
    """The name under which the memory keeps what was learned together."""
    return "+".join(task.name for task in tasks)

"""What a continual-learning method is: the terms it adds to a step and what it does at a task's ends.

A new method is one file in this folder: a ``Method`` subclass with its paper and its settings, imported in
``methods/__init__.py``. ``docs/adding_a_method.md`` walks through one.

Shapes: B batch, L padded length, V vocabulary.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.heads import HeadImportance
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.costs import Overhead, Scale
from seekr_cl.methods.losses import causal_lm_loss, count_labels
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.positions import counts_from_the_edge, positions
from seekr_cl.settings import Settings
from seekr_cl.tasks import Encoded
from seekr_cl.tasks.collate import IGNORE

Batch = dict[str, Any]
Carried = tuple[Mapping[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    url: str


@dataclass(slots=True)
class LossTerm:
    """One named part of a loss: ``weight * value`` is what is minimised.

    Attributes:
        value: a scalar.
        weight: its weight.
        count: how many things ``value`` is a mean of, such as answer tokens; ``None``: the batch's samples. Where
            several processes share a batch, it makes their values one mean.
        of_weights: whether it is a penalty on the weights, the same in all processes whatever their batches.
    """

    value: Tensor
    weight: float = 1.0
    count: Tensor | int | None = None
    of_weights: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """How samples of different lengths are padded into one batch.

    Attributes:
        pad_id: token in the padding.
        side: ``right`` or ``left``.
        multiple: the length is rounded up to a multiple of this.
    """

    pad_id: int
    side: str = "right"
    multiple: int = 1

    def length(self, lengths: Sequence[int]) -> int:
        """Padded length of a batch."""
        return -(-max(lengths) // self.multiple) * self.multiple

    def offset(self, length: int, padded: int) -> int:
        """Where a sample's first token stands."""
        return padded - length if self.side == "left" else 0


@dataclass(slots=True)
class Context:
    """What a method may work with while one task is learnt.

    Attributes:
        model: the model being trained; a method that trains adapters of its own puts the model with them in its place.
        layout: how batches are padded.
        importance: head importance from the memory, if any.
        seed: for everything the method draws; differs from task to task.
        warn: for sentences the user should read.
        signal_dtype: precision in which a teacher's signals are kept, a key of ``quantise.DTYPES``.
        tokenizer: of the model, for a method that writes or reads text.
        examples: the new task's training examples.
        carried: what ``carry_on`` gave after the last task, or ``None``: tensors, and JSON.
        task: the new task's name.
    """

    model: PreTrainedModel
    layout: Layout
    importance: HeadImportance | None
    seed: int
    warn: Callable[[str], None]
    signal_dtype: str = "float32"
    tokenizer: PreTrainedTokenizerBase | None = None
    examples: Sequence[Encoded] = ()
    carried: Carried | None = None
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """Settings of a method that has none."""


class Method(ABC):
    """Base of all methods; what is here is plain fine-tuning on the new task.

    Attributes:
        name: what the config and the command line call it.
        paper: its source.
        Settings: dataclass of its settings; an unknown key is refused.
        replays: whether batches of old samples come back on a schedule.
        replay_runs_model: whether a replayed sample goes through the model, which takes time.
        keeps: whether the memory keeps samples of each task; whoever replays keeps.
        adapters: whether it trains adapters of its own (PEFT) and not the model's weights; then none can be asked for.
        frozen_copy: whether the model as it was before the task is held beside the one that is trained.
        last_turn_only: whether it knows one answer per example, so that of a conversation only the last is learnt.
        joint: whether it needs all tasks at once (the multi-task upper bound).
        generates: whether the model writes what is replayed, so that no sample need be kept.
        carries_weights: whether what ``carry_on`` gives depends on the weights, so that it has to see them whole.
        knows_shards: whether what it does with single weights and gradients also goes for sharded ones (FSDP2).
        replay_defaults: its paper's replay settings where they differ from the library's; the user's own still win.
        training_defaults: the same for learning rate, scheduler and optimizer.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    Settings: ClassVar[type] = NoSettings
    replays: ClassVar[bool] = False
    replay_runs_model: ClassVar[bool] = True
    keeps: ClassVar[bool] = False
    adapters: ClassVar[bool] = False
    frozen_copy: ClassVar[bool] = False
    last_turn_only: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    carries_weights: ClassVar[bool] = True
    knows_shards: ClassVar[bool] = False
    replay_defaults: ClassVar[Mapping[str, Any]] = {}
    training_defaults: ClassVar[TrainingDefaults] = TrainingDefaults()

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings = settings
        self.context = context

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.keeps = cls.keeps or cls.replays

    @classmethod
    def num_replayed(cls, settings: Any, kept: Sequence[int], examples: int) -> int:
        """How many samples one round of replay has while a task is learnt, for ``seekr plan``.

        Args:
            settings: the method's.
            kept: samples kept of each old task.
            examples: of the new task.
        """
        return sum(kept)

    @classmethod
    def virtual_tokens(cls, settings: Any, model: PreTrainedModel, tasks: int) -> int:
        """Virtual tokens of prompts before every example while a task is learnt, beside those the model comes with.

        Args:
            settings: the method's.
            model: before the first of the tasks.
            tasks: which task it is, counted from that model.
        """
        return 0

    @classmethod
    def overhead(cls, settings: Any, scale: Scale) -> Overhead:
        """What the method needs beside model, optimizer and samples, for ``seekr plan``.

        Args:
            settings: the method's.
            scale: what that grows with.
        """
        return Overhead()

    @classmethod
    def steers(cls, settings: Any) -> bool:
        """Whether a term's weight follows the measured gradient norms (``measure_every``)."""
        return False

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a method with ``adapters`` takes a model that comes with those it has, being such as it writes."""
        return False

    @property
    def importance(self) -> HeadImportance | None:
        """Head importance to write into the memory."""
        return self.context.importance

    def before_task(self, samples: list[ReplaySample]) -> None:
        """Called before training with the samples of the new task that will be kept."""

    def check_replay(self, tasks: Sequence[MemoryTask]) -> None:
        """Called before training with what the memory holds: what lacks a signal is named now, not hours in.

        There may be a hundred thousand samples on a disk; ``task.totals`` counts their signals without reading any.
        """

    def old_samples(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """What is replayed while this task is learnt, given what the memory holds; called before ``before_task``.

        A method may put its own in their place, such as samples that the model writes. Called again when a task is
        resumed, so the same must come of it: from ``context.seed`` and the model before the task.
        """
        return tasks

    def task_terms(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Loss terms of a batch of new examples (eq. 1); ``task`` must be among them.

        Args:
            model: the model, possibly wrapped for distributed training.
            batch: ``input_ids``, ``attention_mask``, ``labels``, each [B, L].
        """
        labels_BL = batch["labels"]
        return {"task": LossTerm(causal_lm_loss(forward(model, batch), labels_BL), count=count_labels(labels_BL))}

    def replay_extras(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """What a replay batch carries beside ids, mask and labels: teacher signals as nested dicts of tensors."""
        return {}

    def replay_terms(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Loss terms of a batch of old samples."""
        raise TypeError(f"method {self.name} does not replay")

    def before_step(self, model: nn.Module) -> None:
        """Called when the gradients of an optimizer step are complete, before they are clipped.

        Args:
            model: the unwrapped model; ``parameter.grad`` may be changed or replaced.
        """

    def after_step(self, model: nn.Module) -> None:
        """Called after the optimizer has changed the weights; the gradients are still there."""

    def own_step(self) -> None:
        """Called after ``after_step``, for a step of what the method trains beside the model."""

    def after_task(self, name: str, samples: list[ReplaySample]) -> MemoryTask:
        """Called after training; returns what the memory keeps of the task, with this model's signals as teacher."""
        return MemoryTask(name, samples)

    def carry_on(self) -> Carried | None:
        """What the next task needs of this one beside samples, asked for after ``after_task``: tensors, and JSON.

        The memory keeps it; the next task's method finds it in ``context.carried``. ``None`` if there is nothing.
        """
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was gathered in ``before_task`` or ``after_task`` and is needed later: tensors, and JSON.

        Saved with every checkpoint, so that a task can go on in another process. A method that keeps nothing between
        its calls has nothing to add.
        """
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state`` gave, in place of the calls that have been made already."""

    def share_target(self) -> tuple[str, float] | None:
        """Term whose weight is to be steered and the share of the gradient norm it should have, if any."""
        return None

    def finished_model(self) -> PreTrainedModel:
        """The model as it is written: plain, with whatever was attached to it merged or removed. Asked for last."""
        return self.context.model

    def close(self) -> None:
        """Gives back whatever was attached to the model."""


def forward(model: Any, batch: Batch) -> Tensor:
    """The model's logits [B, L, V] for a batch; the cache is never wanted in training."""
    ids_BL, mask_BL, more = batch["input_ids"], batch["attention_mask"], {}
    # A model that chooses its adapters by the query is told which tokens these are: those without a label.
    if getattr(getattr(model, "module", model), "query_conditioned", False) and "labels" in batch:
        more["query_mask"] = (batch["labels"] != IGNORE).cumsum(1) == 0
    # Without padding on the left, all models count alike.
    if not mask_BL[:, 0].all() and counts_from_the_edge(model):
        more["position_ids"] = positions(mask_BL)
    logits = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, **more).logits
    # A prompt that an adapter learns stands before the first token, with outputs of its own.
    return logits[:, -ids_BL.shape[1] :]


def task_generator(seed: int) -> torch.Generator:
    """A random generator independent of the global one."""
    return torch.Generator().manual_seed(seed)

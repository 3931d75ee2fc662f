"""What a continual-learning method is: the terms it adds to a step and what it does at a task's ends.

A new method is one file: a ``Method`` subclass with its paper and its settings, and a line in ``methods/registry.py``;
or a file of your own, named as ``package.module:Class``. ``docs/adding_a_method.md`` walks through one.

Shapes: B batch, L padded length, V vocabulary.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.errors import ConfigError
from seekr_cl.heads import HeadImportance
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.answers import AnswerHead, Sums, label_losses, label_sum, predicting
from seekr_cl.methods.task_loss import TaskLoss, top_entropy
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.positions import counts_from_the_edge, positions
from seekr_cl.settings import Settings
from seekr_cl.tasks import Encoded
from seekr_cl.tasks.collate import IGNORE

Batch = dict[str, Any]
State = tuple[Mapping[str, Tensor], dict[str, Any]]
"""Tensors by name, and JSON."""
MemoryUse = Literal["none", "kept", "replayed"]
WeightAccess = Literal["none", "whole", "sharded"]
_MAY_SEE_WEIGHTS = ("before_step", "after_step", "finished_model")
"""Hooks in which a method may work on weights or gradients themselves, so that it has to say whether it does."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    url: str


@dataclass(slots=True)
class LossTerm:
    """One named part of a loss: ``weight * value`` is what is minimized.

    Attributes:
        value: a scalar.
        weight: its weight.
        count: how many things ``value`` is a mean of, such as answer tokens; ``None``: the batch's samples. Where
            several processes share a batch, it makes their values one mean.
        of_weights: whether it is a penalty on the weights, the same in all processes whatever their batches.
        grad_norm_share: share of all terms' gradient norms that the trainer steers the weight to, from the first
            measurement on (``measure_every``); the method's Settings say so beforehand with a property ``steers``.
    """

    value: Tensor
    weight: float = 1.0
    count: Tensor | int | None = None
    of_weights: bool = False
    grad_norm_share: float | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a method leaves of a task it has learned.

    Attributes:
        task: what the memory keeps, with this model's signals as teacher.
        importance: head importance to write into the memory; ``None``: it stays as it was.
        next_state: what the next task needs of this one beside samples, kept by the memory; the next task's method
            finds it in ``context.previous_state``.
    """

    task: MemoryTask
    importance: HeadImportance | None = None
    next_state: State | None = None


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
    """What a method may work with while one task is learned.

    Attributes:
        model: the model being trained; a method that trains adapters of its own puts the model with them in its place.
        layout: how batches are padded.
        importance: head importance from the memory, if any.
        seed: for everything the method draws; differs from task to task.
        warn: for sentences the user should read.
        signal_dtype: precision in which a teacher's signals are kept, a key of ``quantise.DTYPES``.
        tokenizer: of the model, for a method that writes or reads text.
        examples: what is trained on of the new task, after ``new_examples``; a batch's ``example_B`` are places in it.
        previous_state: the ``next_state`` of the last task's result, or ``None``: tensors, and JSON.
        task: the new task's name.
        task_loss: weights on the new task's loss, if they are asked for.
        batch_size: samples that a backward pass outside of training may hold at once, as many as one in training;
            ``None``: not known.
    """

    model: PreTrainedModel
    layout: Layout
    importance: HeadImportance | None
    seed: int
    warn: Callable[[str], None]
    signal_dtype: str = "float32"
    tokenizer: PreTrainedTokenizerBase | None = None
    examples: Sequence[Encoded] = ()
    previous_state: State | None = None
    task: str = ""
    task_loss: TaskLoss | None = None
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """Settings of a method that has none."""


class Method(ABC):
    """Base of all methods; what is here is plain fine-tuning on the new task.

    Attributes:
        name: what the config and the command line call it.
        paper: its source.
        Settings: group of its settings; an unknown key is refused.
        memory: what of each task it has the memory hold: ``none``; samples that are ``kept``; samples that are kept
            and ``replayed`` in batches on a schedule.
        weight_access: how it works on single weights and gradients, which an engine may hold in pieces: ``none``, on
            loss terms alone; they must be ``whole``; ``sharded`` ones (FSDP2) will do.
        adapters: whether it trains adapters of its own (PEFT) and not the model's weights; then none can be asked for.
        frozen_copy: whether the model as it was before the task is held beside the one that is trained.
        last_turn_only: whether it knows one answer per example, so that of a conversation only the last is learned.
        multi_task: whether it needs all tasks at once (the upper bound).
        generates: whether the model writes what is replayed, so that no sample need be kept.
        replay_defaults: its paper's replay settings where they differ from the library's; the user's own still win.
        training_defaults: the same for learning rate, scheduler and optimizer.
        keeps: whether ``memory`` is not ``none``; read only.
        replays: whether ``memory`` is ``replayed``; read only.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    Settings: ClassVar[type] = NoSettings
    memory: ClassVar[MemoryUse] = "none"
    weight_access: ClassVar[WeightAccess] = "none"
    adapters: ClassVar[bool] = False
    frozen_copy: ClassVar[bool] = False
    last_turn_only: ClassVar[bool] = False
    multi_task: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    replay_defaults: ClassVar[Mapping[str, Any]] = {}
    training_defaults: ClassVar[TrainingDefaults] = TrainingDefaults()
    keeps: ClassVar[bool] = False
    replays: ClassVar[bool] = False

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings = settings
        self.context = context

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for flag, known in (("memory", get_args(MemoryUse)), ("weight_access", get_args(WeightAccess))):
            if getattr(cls, flag) not in known:
                raise ConfigError(f"{cls.__qualname__}.{flag}: {getattr(cls, flag)!r}; choose from {', '.join(known)}")
        if derived := {"keeps", "replays"} & vars(cls).keys():
            raise ConfigError(
                f"{cls.__qualname__}.{min(derived)}: follows from memory; set memory = 'kept' or 'replayed'"
            )
        declared = any("weight_access" in vars(base) for base in cls.__mro__ if base is not Method)
        for hook in _MAY_SEE_WEIGHTS:
            if not declared and getattr(cls, hook) is not getattr(Method, hook):
                raise ConfigError(
                    f"{cls.__qualname__}.{hook}: may work on weights or gradients; set weight_access = 'whole' if it "
                    "does, 'sharded' if it knows FSDP2's shards too, 'none' if it does not"
                )
        cls.keeps, cls.replays = cls.memory != "none", cls.memory == "replayed"

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a method with ``adapters`` takes a model that comes with those it has, being such as it writes."""
        return False

    @classmethod
    def virtual_tokens(cls, settings: Any, model: PreTrainedModel, tasks: int) -> int:
        """Virtual tokens of prompts before every example while a task is learned, beside those the model comes with.

        Args:
            settings: the method's.
            model: before the first of the tasks.
            tasks: which task it is, counted from that model.
        """
        return 0

    def new_examples(self, examples: Sequence[Encoded]) -> Sequence[Encoded]:
        """What is trained on in place of the new task's examples, the first that is asked once the model is loaded.

        A method may rewrite them, leave some out or add others, or look at them to weigh or label them: a batch of new
        examples says in ``example_B`` which they are. What the memory keeps stays the task's own. Called again when a
        task is resumed, so the same must come of it: from ``context.seed`` and the model before the task.

        Args:
            examples: of one task; a ``multi_task`` method is asked once for each.
        """
        return examples

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """What is replayed while this task is learned, given what the memory holds; called before ``before_task``.

        What lacks a signal is refused now, not hours in; there may be a hundred thousand samples on a disk, and
        ``task.totals`` counts their signals without reading any. A method may put samples of its own in their place,
        such as the model writes. Called again when a task is resumed, so the same must come of it: from
        ``context.seed`` and the model before the task. Of what is only ``kept``, nothing is replayed.
        """
        return tasks

    def before_task(self, samples: list[ReplaySample]) -> None:
        """Called before training with the samples of the new task that will be kept."""

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Loss terms of a batch of new examples (eq. 1); ``task`` must be among them.

        Args:
            model: the model, possibly wrapped for distributed training.
            batch: ``input_ids``, ``attention_mask``, ``labels``, each [B, L]; ``example_B``, places of the examples in
                ``context.examples``.
        """
        return {"task": task_term(self.context, model, batch)}

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """What a replay batch carries beside ids, mask and labels: teacher signals as nested dicts of tensors."""
        return {}

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Loss terms of a batch of old samples."""
        raise TypeError(f"method {self.name} does not replay")

    def before_step(self, model: nn.Module) -> None:
        """Called when the gradients of an optimizer step are complete, before they are clipped.

        Args:
            model: the unwrapped model; ``parameter.grad`` may be changed or replaced.
        """

    def after_step(self, model: nn.Module) -> None:
        """Called after the optimizer has changed the weights; the gradients are still there.

        A method without ``weight_access`` may take a step here of what it trains beside the model.
        """

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Called after training; returns what is left of the task, with this model's signals as teacher.

        Args:
            name: of the task; general data has a name of its own, and is not ``context.task``.
            samples: of it that are kept.
        """
        return TaskResult(MemoryTask(name, samples))

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was gathered in the calls so far and is needed later: tensors, and JSON.

        Saved with every checkpoint, so that a task can go on in another process. A method that keeps nothing between
        its calls has nothing to add.
        """
        return {}, {}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave, in place of the calls that have been made already."""

    def finished_model(self) -> PreTrainedModel:
        """The model as it is written: plain, with whatever was attached to it merged or removed. Asked for last."""
        return self.context.model

    def close(self) -> None:
        """Gives back whatever was attached to the model."""


def run(model: Any, batch: Batch) -> Any:
    """A model's output for a batch; the cache is never wanted in training."""
    mask_BL, more = batch["attention_mask"], {}
    # A model that chooses its adapters by the query is told which tokens these are: those without a label.
    if getattr(getattr(model, "module", model), "query_conditioned", False) and "labels" in batch:
        more["query_mask"] = (batch["labels"] != IGNORE).cumsum(1) == 0
    # Without padding on the left, all models count alike.
    if not mask_BL[:, 0].all() and counts_from_the_edge(model):
        more["position_ids"] = positions(mask_BL)
    return model(input_ids=batch["input_ids"], attention_mask=mask_BL, use_cache=False, **more)


def forward(model: Any, batch: Batch) -> Tensor:
    """The logits [B, L, V] of all of a batch's positions, for what needs them all; ``ask`` gives those of some."""
    # A prompt that an adapter learns stands before the first token, with outputs of its own.
    return run(model, batch).logits[:, -batch["input_ids"].shape[1] :]


def ask(
    model: Any, batch: Batch, keep_BL: Tensor, sums: Sums, call: Callable[[Any, Batch], Any] = run
) -> Sequence[Tensor]:
    """Runs a batch and gives what ``sums`` makes of the logits at some positions; of others no logits are made."""
    head, place_N = AnswerHead.of(model), keep_BL.flatten().nonzero()[:, 0]
    head.asked, head.held = (place_N, keep_BL.shape[1], sums), None
    try:
        logits = call(model, batch).logits
    finally:
        head.asked = head.held = None
    return logits.unbind() if logits.dim() < 3 else sums(logits[0], place_N)


def label_term(model: Any, batch: Batch, weight: float = 1.0, call: Callable[[Any, Batch], Any] = run) -> LossTerm:
    """The mean cross entropy of a batch's labelled tokens, each predicted from the position before it."""
    keep_BL = predicting(batch["labels"])
    (total,) = ask(model, batch, keep_BL, lambda one_CV, place_C: (label_sum(one_CV, place_C, batch["labels"]),), call)
    return LossTerm(total / keep_BL.sum().clamp(min=1), weight, keep_BL.sum())


def task_term(context: Context, model: Any, batch: Batch, call: Callable[[Any, Batch], Any] = run) -> LossTerm:
    """L_task of a batch of new examples: the mean cross entropy of its answer tokens, weighted by ``task_loss``."""

    def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
        return token_values(context.task_loss, logits_CV, place_C, batch["labels"])

    return weighted_term(context.task_loss, batch, ask(model, batch, predicting(batch["labels"]), values, call))


def token_values(loss: TaskLoss | None, logits_CV: Tensor, place_C: Tensor, labels_BL: Tensor) -> list[Tensor]:
    """For ``weighted_term``: [C] each answer token's negative log-probability and, if asked for, its entropy."""
    found = [label_losses(logits_CV, place_C, labels_BL)]
    if loss is not None and loss.settings.entropy_of:
        found.append(top_entropy(logits_CV.detach().float(), loss.settings.entropy_of))
    return found


def weighted_term(loss: TaskLoss | None, batch: Batch, values: Sequence[Tensor]) -> LossTerm:
    """The mean over answer tokens of what ``token_values`` gave of all places that ``predicting`` marks, in order."""
    count = predicting(batch["labels"]).sum()
    if loss is None:
        return LossTerm(values[0].sum() / count.clamp(min=1), count=count)
    entropy_N = values[1] if loss.settings.entropy_of else None
    return LossTerm(loss.weighted(values[0], entropy_N, batch["example_B"]), count=count)


def task_generator(seed: int) -> torch.Generator:
    """A random generator that is independent of the global one."""
    return torch.Generator().manual_seed(seed)

"""SeekrConfig: transformers' TrainingArguments plus continual learning, from Python, YAML or the command line."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from seekr_cl.attention.stored.codec import DTYPES
from seekr_cl.config.average import AverageSettings, read_average
from seekr_cl.config.average import as_json as average_json
from seekr_cl.config.chat import chat_settings
from seekr_cl.config.general import SelfWritten, read_general
from seekr_cl.config.general import as_json as general_json
from seekr_cl.config.liger import liger_settings
from seekr_cl.config.muon import MUON
from seekr_cl.config.presets import PRESETS
from seekr_cl.config.rates import SETTLED, DefaultRate, settle, warn_of_training
from seekr_cl.config.retention import RetentionConfig
from seekr_cl.config.trainer_settings import DECIDED
from seekr_cl.config.tried import require_bounds
from seekr_cl.distributed import collectives
from seekr_cl.environment import untouched_by_refusal
from seekr_cl.errors import ConfigError, first_line, nearest
from seekr_cl.evaluation.evaluation_config import EvaluationConfig
from seekr_cl.memory.memory_config import MemoryConfig
from seekr_cl.methods.base import Method
from seekr_cl.methods.method_config import MethodConfig, read_method
from seekr_cl.methods.task_loss import BeforeWeights, TaskLossSettings, as_json, read_task_loss
from seekr_cl.models.bitsandbytes import FORMS as QUANTIZATIONS
from seekr_cl.models.bitsandbytes import require as require_quantization
from seekr_cl.models.peft_adapters import PROMPTS, read_peft
from seekr_cl.models.trained_part import check_pattern
from seekr_cl.placement import TOP, declare, under, unknown
from seekr_cl.renamed import rename_settings
from seekr_cl.replay.replay_config import KEEPING, ReplayConfig, read_replay
from seekr_cl.settings import Ge, Gt, Lt, OneOf, Settings, as_mapping, build, check_value
from seekr_cl.tasks.chat_template import DATE

_DEFAULTS: dict[str, Any] = {
    "prompt_boundary": "separate",
    "padding_side": "right",
    "pad_multiple": 1,
    "order": "shuffled",
    "group_by_length": True,
    "loss_average": "tokens",
    "carry_optimizer": False,
    "signal_dtype": "int8",
}
"""What a setting left at ``None`` is where the preset says nothing."""

_LIBRARY_OPTIM = TrainingArguments.__dataclass_fields__["optim"].default
_GROUPS = ("replay", "memory", "method", "retention", "evaluation")
_READ = ("peft", "general", "task_loss", "average")
"""Settings that may be a name or a mapping, each with a reader of its own."""


@dataclass
class SeekrConfig(TrainingArguments):
    """All settings of learning one task after another.

    Everything of ``TrainingArguments`` is here too; the defaults that differ are the paper's. Fields left at ``None``
    take the preset's value.

    Attributes:
        learning_rate: default the method's own (``seekr methods``), 2e-4 for an adapter; for all weights 1e-5 at seven
            billion of them, more for a smaller model (5e-5 at 135 million); with a preset of a paper 1e-5.
        lr_scheduler_type: default the method's own, else ``cosine``.
        optim: default the method's own, else AdamW; ``muon`` is torch's Muon for the matrices of hidden layers and
            AdamW for the rest (docs/partial_training.md).
        train: which weights are trained: ``attention``, ``mlp``, or a regular expression that is looked for in their
            names; default all.
        preset: ``default``, ``small`` (SEEKR's signals in few bytes), ``paper`` or ``official``.
        method: a method's name, a mapping with ``name`` and its settings, or a ``Method`` class.
        task_loss: weights on the new task's loss, under every method: ``dft``, ``eaft``, ``talr``, ``stm``, ``flow``,
            or a mapping with ``name`` and its settings (docs/task_losses.md).
        average: the weights that a task ends with are an average, under every method: ``sfa``, ``wise_ft``, ``ema``,
            or a mapping with ``kind`` and its settings (docs/averaging.md).
        replay: a mapping of its settings, or a ``ReplayConfig``.
        memory: a mapping of its settings, or a ``MemoryConfig``.
        evaluation: a mapping of its settings, or an ``EvaluationConfig``.
        per_device_eval_batch_size: the most prompts answered at a time; default as many as ``evaluation.batch_tokens``
            allow.
        retention: a mapping of its settings, or a ``RetentionConfig``: old tasks probed while a new one is learned.
        general: examples of general data that go into the memory, with the base model's own signals, before the
            first task: a file or folder, or ``self``: the base model writes them (a mapping with ``source: self`` has
            settings; docs/general.md).
        general_samples: how many of them; default as many as the replay ratio keeps, at least 8; of ``self`` 32.
        dtype: of the weights when a model is loaded: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        trust_remote_code: run code that comes with the model.
        peft: train an adapter instead of all weights: ``lora``, a PEFT config such as ``LoraConfig(...)``, or a mapping
            of one with ``peft_type``. The output is an adapter folder; a model that is one goes on with its adapter
            without this.
        quantization: ``4bit`` holds the base model's weights in four bits (NF4, bitsandbytes) while an adapter is
            trained.
        max_length: tokens of an example; default 1024 or the model's context if that is shorter.
        max_prompt_length: tokens of a prompt.
        max_answer_length: tokens of an answer; longer ones are refused (``merged`` truncates them).
        long_completions: ``refuse`` a task with a completion that does not fit, or ``skip`` such examples.
        prompt_boundary: ``separate`` tokenizes prompt and completion separately; ``merged`` as one text, as the
            official code does. ``boundary: exact`` and ``joint`` are the old names, removed in the next release.
        train_on: assistant turns of a conversation that are learned: ``all`` or only the ``last``; default all, but the
            last where the method or ``prompt_boundary: merged`` knows one answer per example.
        chat_template: a file with a chat template that takes the place of the tokenizer's own.
        chat_template_kwargs: what the chat template is told, such as ``enable_thinking: false``; a record's own
            ``chat_template_kwargs`` come on top.
        template_date: the day, ``YYYY-MM-DD``, that a chat template with a date writes: one learning has one date.
        strip_thinking: score answers to ``messages`` without think block and the template's markers.
        padding_side: ``right`` or ``left``, in training; generation always pads on the left.
        pad_multiple: batches are padded to a multiple of this.
        order: ``shuffled`` anew each epoch from ``seed``; ``official`` is the official code's one order.
        group_by_length: examples of similar length share a step, new ones and replayed ones, and steps come in random
            order; false mixes lengths as ``order`` has them. Default true, but with ``order: official``.
        packing: rows of a batch share sequences without seeing one another, so that no padding is computed; results are
            those of padded batches. A model or method that cannot keep rows apart is refused.
        loss_average: ``tokens`` weighs all answer tokens of an optimizer step alike; ``micro_batches`` all batches.
        carry_optimizer: keep the optimizer's state from task to task (official code) instead of a fresh one.
        signal_dtype: precision of stored teacher signals: ``float32``, ``float16``, ``bfloat16`` or ``int8``.
        measure_every: gradient norms of the loss terms are measured on every so many batches of each kind; 0 never.
        checkpoint_every: inside a task the state is saved every so many optimizer steps, for ``--resume``; 0 saves it
            only between the phases of a task.
        keep_models: ``all`` models of a run or only the ``last``.
        progress: ``auto`` shows a bar on a terminal and plain lines elsewhere; ``bar``, ``lines``, ``none``.
    """

    learning_rate: Annotated[float | None, Ge(0)] = None  # type: ignore[assignment]
    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    per_device_train_batch_size: Annotated[int, Ge(1)] = 8
    per_device_eval_batch_size: Annotated[int | None, Ge(1)] = None  # type: ignore[assignment]
    gradient_accumulation_steps: Annotated[int, Ge(1)] = 1
    num_train_epochs: Annotated[float, Gt(0)] = 3.0
    weight_decay: Annotated[float, Ge(0)] = 0.0
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    seed: Annotated[int, Ge(0)] = 42
    report_to: str | list[str] | None = "none"
    lr_scheduler_type: Any = None
    optim: Any = None
    logging_steps: float = 10
    preset: Annotated[str, OneOf(PRESETS)] = "default"
    method: Any = "seekr"
    task_loss: Any = None
    average: Any = None
    train: str | None = None
    replay: Any = field(default_factory=dict)
    memory: Any = field(default_factory=dict)
    evaluation: Any = field(default_factory=dict)
    retention: Any = field(default_factory=dict)
    general: Any = None
    general_samples: Annotated[int | None, Ge(1)] = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    trust_remote_code: bool = False
    peft: Any = None
    quantization: Annotated[str | None, OneOf(QUANTIZATIONS)] = None
    max_length: Annotated[int | None, Ge(1)] = None
    max_prompt_length: Annotated[int | None, Ge(1)] = None
    max_answer_length: Annotated[int | None, Ge(1)] = None
    long_completions: Literal["refuse", "skip"] = "refuse"
    prompt_boundary: Literal["separate", "merged"] | None = None
    train_on: Literal["all", "last"] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Any = field(default_factory=dict)
    template_date: Any = DATE
    strip_thinking: bool = True
    padding_side: Literal["right", "left"] | None = None
    pad_multiple: Annotated[int | None, Ge(1)] = None
    order: Literal["shuffled", "official"] | None = None
    group_by_length: bool | None = None
    packing: bool = False
    loss_average: Literal["tokens", "micro_batches"] | None = None
    carry_optimizer: bool | None = None
    signal_dtype: Annotated[str | None, OneOf(DTYPES)] = None
    measure_every: Annotated[int, Ge(0)] = 20
    checkpoint_every: Annotated[int, Ge(0)] = 200
    keep_models: Literal["all", "last"] = "all"
    progress: Literal["auto", "bar", "lines", "none"] = "auto"

    boundary: InitVar[Any] = None

    def __post_init__(self, boundary: Any) -> None:
        self._made = False
        if boundary is not None:
            given = rename_settings({"boundary": boundary, "prompt_boundary": self.prompt_boundary})
            self.prompt_boundary = given["prompt_boundary"]
        hints = typing.get_type_hints(type(self), include_extras=True)
        if isinstance(self.learning_rate, DefaultRate):
            # Of the config that this is a copy of, with another method perhaps.
            self.learning_rate = None
        require_bounds(self)
        # Before anything is derived from them.
        for key in _CHECKED:
            setattr(self, key, check_value(getattr(self, key), hints[key], key))
        preset, grouping = PRESETS[self.preset], self.group_by_length
        for key, value in (_DEFAULTS | {k: v for k, v in preset.items() if k in _DEFAULTS}).items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        if self.group_by_length and self.order == "official":
            if grouping:
                raise ConfigError("group_by_length: order: official has one order of its own; remove one of the two")
            self.group_by_length = False
        self.method: MethodConfig = read_method(self.method, preset)
        self.task_loss: TaskLossSettings | None = read_task_loss(self.task_loss)
        self.average: AverageSettings | None = read_average(self.average)
        given_replay = as_mapping(self.replay, ReplayConfig, "replay")
        given_memory = as_mapping(self.memory, MemoryConfig, "memory")
        self.general: str | SelfWritten | None = read_general(self.general)
        given_retention = as_mapping(self.retention, RetentionConfig, "retention")
        _refuse_unused(self.method, given_replay, given_memory, self.general)
        _refuse_blind(self.method, given_retention)
        self.replay: ReplayConfig = read_replay(
            given_replay, preset.get("replay", {}), self.method.kind.replay_defaults
        )
        self.memory: MemoryConfig = build(MemoryConfig, given_memory)
        given_evaluation = as_mapping(self.evaluation, EvaluationConfig, "evaluation")
        self.evaluation: EvaluationConfig = build(EvaluationConfig, given_evaluation)
        self.retention: RetentionConfig = build(RetentionConfig, given_retention)
        self.peft = read_peft(self.peft)
        check_pattern(self.train)
        if self.train is not None and (self.peft is not None or self.method.kind.adapters):
            owner = "peft" if self.peft is not None else f"method {self.method.name}"
            raise ConfigError(f"train: {owner} decides what is trained; remove train")
        _refuse_unwatched(self.method, self.task_loss, self.average, self.peft)
        if self.peft is not None and self.method.kind.adapters:
            raise ConfigError(f"peft: method {self.method.name} trains adapters of its own; remove peft")
        given_training = {key: getattr(self, key) for key in SETTLED}
        self.settled, self.training_sources = settle(given_training, self.method.kind, self.peft, preset)
        for key, value in self.settled.items():
            setattr(self, key, value)
        require_quantization(self.quantization)
        self.chat = chat_settings(self, self.method.kind)
        self.template_date = self.chat.date
        self.liger_kernel_config = liger_settings(self.use_liger_kernel, self.liger_kernel_config, self.use_cpu)
        if self.general is None and self.general_samples is not None:
            raise ConfigError("general_samples: would be ignored; name the data with general, or remove it")
        if self.measure_every == 0 and self.method.steers:
            raise ConfigError(
                f"measure_every: 0 switches the measurement off that method {self.method.name} steers a loss term by "
                "(method.lambda2: auto); raise it, or set that weight"
            )
        # The library's own bar and its own saving take the place of the Trainer's.
        self.disable_tqdm = True
        self.save_strategy = "no"
        self.eval_strategy = "no"
        self.remove_unused_columns = False
        no_accelerator = not torch.accelerator.is_available()
        if (collectives.launched_world_size() > 1 and not torch.cuda.is_available()) or (self.bf16 and no_accelerator):
            # Without a GPU accelerate forms a group only of processes that ask for the CPU, and transformers takes bf16
            # for a GPU's.
            self.use_cpu = True
        known = (*(one.value for one in OptimizerNames), MUON)
        if self.optim not in known:
            raise ConfigError(f"optim: {self.optim!r} is unknown{nearest(str(self.optim), known)}")
        try:
            with untouched_by_refusal() as self.environment_changes:
                # The Trainer knows no such optimizer; SeekrTrainer makes it.
                optim = self.optim
                self.optim = _LIBRARY_OPTIM if optim == MUON else optim
                super().__post_init__()
                self.optim = optim if optim == MUON else self.optim
                # Asking for the device is what makes the launched processes find each other.
                _ = self.device
                super().to_dict()
        except Exception as error:  # of values that it was not made for it raises what it likes
            raise ConfigError(f"training settings: {first_line(error)}") from error
        collectives.require_all_ranks()
        warn_of_training(self)
        if not collectives.is_main():
            self.progress = "none"
        self._made = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _GROUPS and getattr(self, "_made", False):
            raise ConfigError(
                f"{name}: a config cannot be given another {name} once it is made; make a new SeekrConfig, or use "
                f"dataclasses.replace(config, {name}=...)"
            )
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON types."""
        groups = ("replay", "memory", "retention", "evaluation")
        plain = {name: dataclasses.asdict(getattr(self, name)) for name in groups}
        plain["method"] = {"name": self.method.name} | dataclasses.asdict(self.method.settings)
        return (
            super().to_dict()
            | plain
            | {
                "task_loss": as_json(self.task_loss),
                "average": average_json(self.average),
                "general": general_json(self.general),
            }
        )


def _refuse_unwatched(
    method: MethodConfig,
    task_loss: TaskLossSettings | None,
    average: AverageSettings | None,
    peft: Mapping[str, Any] | None,
) -> None:
    """Untrained prompts hide what the model was before the task, and some methods watch how the weights move."""
    prompts = method.kind.virtual_tokens.__func__ is not Method.virtual_tokens.__func__  # type: ignore[attr-defined]
    owner = f"method {method.name}" if prompts else "peft"
    prompts = prompts or (peft is not None and peft["peft_type"] in PROMPTS)
    if prompts and isinstance(task_loss, BeforeWeights):
        raise ConfigError(
            f"task_loss: {task_loss.name} asks the model before the task, and {owner} puts untrained prompts before "
            "every example; use dft, eaft or talr"
        )
    if prompts and average is not None and average.kind != "ema":
        raise ConfigError(
            f"average: {average.kind} goes back towards the weights before the task, where the prompts of {owner} are "
            "untrained; use ema, or remove it"
        )
    watched = ("before_step", "after_step")
    if average is not None and all(getattr(method.kind, hook) is not getattr(Method, hook) for hook in watched):
        raise ConfigError(
            f"average: method {method.name} measures how far each step moves the weights, which an average moves too; "
            "remove it"
        )


def _refuse_unused(
    method: MethodConfig, replay: Mapping[str, Any], memory: Mapping[str, Any], general: str | SelfWritten | None
) -> None:
    """Refuses settings of samples and of their schedule for a method that has no use for them."""
    if not method.kind.keeps:
        if replay:
            raise ConfigError(f"replay: method {method.name} does not replay; drop the key or change the method")
        # Predictions and journals have a mode, whatever the method keeps.
        if memory.keys() - {"mode"}:
            raise ConfigError(f"memory: method {method.name} keeps no samples; drop the key")
        if general is not None:
            raise ConfigError(f"general: method {method.name} keeps no samples; use a replay method")
    if not method.kind.replays:
        for key in replay:
            if key not in KEEPING:
                raise ConfigError(
                    f"replay.{key}: would be ignored: {method.name} keeps samples but does not replay them on a "
                    f"schedule; only {', '.join(KEEPING)} are for it"
                )


def _refuse_blind(method: MethodConfig, retention: Mapping[str, Any]) -> None:
    """Refuses to watch old tasks where no samples of them are kept, and to replay where nothing is replayed."""
    if retention.get("samples") != 0 and retention and not method.kind.keeps:
        raise ConfigError(
            f"retention: method {method.name} keeps no samples of old tasks to probe; drop the key or change the method"
        )
    if retention.get("on_drop") == "more_replay" and not method.kind.replays:
        raise ConfigError(
            f"retention.on_drop: method {method.name} does not replay, so more_replay does nothing; use warn or stop"
        )


_CHECKED = tuple(
    name
    for name in SeekrConfig.__annotations__
    if name not in (*_GROUPS, *_READ, "boundary", "report_to", "lr_scheduler_type", "optim")
)
"""Fields whose annotation says all that a value may be."""


def _names(group: type[Settings]) -> list[str]:
    return [one.name for one in dataclasses.fields(group)]


declare(
    TOP,
    lambda: [one.name for one in dataclasses.fields(SeekrConfig) if one.init and one.name not in DECIDED],
    lambda key: f"it belongs at the top level of the settings: write {key}=VALUE, or {key}: VALUE in YAML",
)
for _group in (EvaluationConfig, RetentionConfig, AverageSettings, SelfWritten):
    declare(_group.section, partial(_names, _group), under(_group.section))


def config_from(settings: Mapping[str, Any], output_dir: str, source: str = "config") -> SeekrConfig:
    """A config from a mapping such as a YAML file's top level.

    Args:
        settings: keys are ``SeekrConfig`` fields.
        output_dir: where the Trainer may put its own files.
        source: the file's name, for messages.

    Raises:
        ConfigError: for an unknown key (naming the nearest), one that would be ignored, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(SeekrConfig) if f.init}
    hints = typing.get_type_hints(SeekrConfig, include_extras=True)
    values = {}
    for key, value in rename_settings(settings, f"{source}: ").items():
        if key in DECIDED:
            raise ConfigError(f"{source}: '{key}' would be ignored: {DECIDED[key]}; remove it")
        if key not in fields:
            known = [name for name in fields if name not in DECIDED]
            raise ConfigError(f"{source}: {unknown(key, TOP, known, listed=False)}")
        values[key] = check_value(value, hints[key], f"{source}: {key}")
    return SeekrConfig(output_dir=output_dir, **values)

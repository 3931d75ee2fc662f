"""SeekrConfig: transformers' TrainingArguments plus continual learning, from Python, YAML or the command line."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from seekr_cl import ranks
from seekr_cl.attention.stored.codec import DTYPES
from seekr_cl.config.liger import liger_settings
from seekr_cl.config.presets import PRESETS
from seekr_cl.errors import ConfigError, nearest
from seekr_cl.memory.budget import parse_bytes
from seekr_cl.methods import Method, get_method
from seekr_cl.models.bitsandbytes import FORMS as QUANTIZATIONS
from seekr_cl.models.bitsandbytes import require as require_quantization
from seekr_cl.models.peft_adapters import read_peft
from seekr_cl.replay.schedule import Cadence
from seekr_cl.replay.selection import CHOICES, SAMPLE_WEIGHTS, TASK_WEIGHTS

# Settings of the Trainer that this library decides itself; accepting them would be accepting dead options.
_OWN_BUSINESS = {
    "output_dir": "name the folder on the command line (--output)",
    "eval_strategy": "evaluation follows each task (seekr run)",
    "eval_steps": "evaluation follows each task (seekr run)",
    "eval_delay": "evaluation follows each task (seekr run)",
    "eval_on_start": "the base model is always evaluated (seekr run)",
    "save_strategy": "use checkpoint_every",
    "save_steps": "use checkpoint_every",
    "save_total_limit": "use keep_models; of checkpoints the last two are kept",
    "load_best_model_at_end": "the model after the last step is the one whose signals are kept",
    "remove_unused_columns": "batches are made by the schedule",
    "train_sampling_strategy": "the order is made by the schedule",
    "data_seed": "use seed",
    "dataloader_drop_last": "every example is seen in every epoch",
    "resume_from_checkpoint": "use seekr run --resume or seekr learn --resume",
    "max_steps": "use num_train_epochs or a task's epochs",
    "do_train": "learning is what the command does",
    "do_eval": "evaluation follows each task (seekr run)",
    "do_predict": "use seekr evaluate",
    "label_names": "labels are the completion's tokens",
    "label_smoothing_factor": "the task's loss is plain cross entropy",
    "push_to_hub": "push the written folder with the hf command",
    "disable_tqdm": "use progress",
    "auto_find_batch_size": "the schedule is made for one batch size",
    "average_tokens_across_devices": "use loss_average",
    "use_cache": "the cache is never wanted in training",
    "length_column_name": "the order is made by the schedule",
    "ignore_data_skip": "use seekr run --resume",
    "restore_callback_states_from_checkpoint": "use seekr run --resume",
    **dict.fromkeys(
        [
            *("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
            *("include_for_metrics", "batch_eval_metrics", "metric_for_best_model", "greater_is_better"),
        ],
        "evaluation generates and scores text (seekr run)",
    ),
    **dict.fromkeys(
        ("save_only_model", "save_on_each_node", "enable_jit_checkpoint"), "model and memory are saved after each task"
    ),
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "push the written folder with the hf command",
    ),
    **dict.fromkeys(
        [
            *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
            *("dataloader_multiprocessing_context", "dataloader_in_order"),
        ],
        "only dataloader_num_workers is used",
    ),
}


_CADENCE = frozenset({"every", "share", "cadence", "clock", "day_steps", "step"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySettings:
    """What is kept of each task and how often it comes back.

    Attributes:
        ratio: share of a task's training examples that is kept; at least one, unless the ratio is 0.
        samples: how many examples to keep instead of a ratio.
        every: a replay batch after every so many new batches.
        share: replay batches as a share of all batches.
        cadence: without ``every`` and ``share``: ``volume`` interleaves by the ratio of the volumes; ``official`` uses
            the official code's quotient of batch counts; ``forgetting_curve`` replays the whole memory after 1, 2, 4,
            7, 15 and 30 thirtieths of the new batches (FOREVER).
        clock: under ``forgetting_curve``: ``steps`` divides the new batches into 30 days; ``updates`` measures days by
            how far the weights have moved (FOREVER).
        day_steps: optimizer steps that make the first day by ``clock: updates``.
        batch_size: samples in a replay batch; default the training batch size.
        choice: which examples are kept: ``random`` (seeded), ``first`` (official code), ``balanced`` over classes or
            completion lengths, ``herding`` on the model's features (iCaRL), the highest ``loss`` before the task.
        task_weights: ``equal`` replays every sample alike; ``similarity`` replays old tasks by their distance from the
            new one (InsCL).
        sample_weights: within a task ``equal``; by the ``information`` of its prompt (InsCL's InsInfo, of words), or by
            ``surprise``, the loss of its completion under the model before the task (SuRe).
        step: ``separate`` steps for replay (official code) or ``joint`` ones with the new batch (eq. 13).
    """

    ratio: float = 0.01
    samples: int | None = None
    every: int | None = None
    share: float | None = None
    cadence: str = "volume"
    clock: str = "steps"
    day_steps: int = 24
    batch_size: int | None = None
    choice: str = "random"
    task_weights: str = "equal"
    sample_weights: str = "equal"
    step: str = "separate"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ConfigError(
                f"replay.ratio: {self.ratio} must lie between 0 and 1 (0.01 keeps one example in a hundred)"
            )
        if self.samples is not None and self.samples < 0:
            raise ConfigError(f"replay.samples: {self.samples} is negative; 0 keeps nothing")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"replay.batch_size: {self.batch_size} must be at least 1")
        for key, known in (
            ("cadence", ("volume", "official", "forgetting_curve")),
            ("clock", ("steps", "updates")),
            ("choice", tuple(CHOICES)),
            ("task_weights", TASK_WEIGHTS),
            ("sample_weights", SAMPLE_WEIGHTS),
            ("step", ("separate", "joint")),
        ):
            if getattr(self, key) not in known:
                raise ConfigError(f"replay.{key}: '{getattr(self, key)}' is unknown; choose from {', '.join(known)}")
        if self.cadence != "volume" and (self.every or self.share or self.step == "joint"):
            raise ConfigError(
                f"replay.cadence: '{self.cadence}' fixes when replay comes; drop every, share and step: joint"
            )
        if self.clock != "steps" and self.cadence != "forgetting_curve":
            raise ConfigError("replay.clock: would be ignored; set replay.cadence: forgetting_curve, or remove it")
        if self.day_steps < 1:
            raise ConfigError(f"replay.day_steps: {self.day_steps} must be at least 1")
        self.schedule_cadence()

    def schedule_cadence(self) -> Cadence:
        """The schedule's view of ``every``, ``share`` and ``cadence``."""
        named = {"official": self.cadence == "official", "reviews": self.cadence == "forgetting_curve"}
        named["by_updates"] = self.clock == "updates"
        return Cadence(every=self.every, share=self.share, **named)

    def count(self, num_examples: int) -> int:
        """How many of a task's examples are kept."""
        if self.samples is not None:
            return min(self.samples, num_examples)
        return min(num_examples, max(1, int(num_examples * self.ratio))) if self.ratio else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySettings:
    """How large the memory may become.

    Attributes:
        max_bytes: of all samples with their texts and signals: a number of bytes or text such as 500MB, 2GB or 1.5GiB;
            beyond it every task gives up samples until all have about as many. Default no limit.
    """

    max_bytes: int | str | None = None

    def __post_init__(self) -> None:
        self.limit()

    def limit(self) -> int | None:
        """The limit in bytes."""
        return None if self.max_bytes is None else parse_bytes("memory.max_bytes", self.max_bytes)


@dataclass
class SeekrConfig(TrainingArguments):
    """All settings of learning one task after another.

    Everything of ``TrainingArguments`` is here too; the defaults that differ are the paper's. Fields left at ``None``
    take the preset's value.

    Attributes:
        preset: ``default``, ``paper`` or ``official``.
        method: a method's name, or a mapping with ``name`` and its settings.
        replay: a mapping of ``ReplaySettings``.
        memory: a mapping of ``MemorySettings``.
        general: examples of general data that go into the memory, with the base model's own signals, before the
            first task.
        general_samples: how many of them; default as many as the replay ratio keeps, at least 8.
        dtype: of the weights when a model is loaded: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        trust_remote_code: run code that comes with the model.
        peft: train an adapter instead of all weights: ``lora``, or a mapping of a PEFT config with ``peft_type``. The
            output is an adapter folder; a model that is one goes on with its adapter without this.
        quantization: ``4bit`` holds the base model's weights in four bits (NF4, bitsandbytes) while an adapter is
            trained.
        max_length: tokens of an example; default 1024 or the model's context if that is shorter.
        max_prompt_length: tokens of a prompt.
        max_answer_length: tokens of an answer; longer ones are refused (``joint`` cuts them).
        long_completions: ``refuse`` a task with a completion that does not fit, or ``skip`` such examples.
        boundary: ``exact`` tokenises prompt and completion apart; ``joint`` as the official code.
        padding_side: ``right`` or ``left``, in training; generation always pads on the left.
        pad_multiple: batches are padded to a multiple of this.
        order: ``shuffled`` anew each epoch from ``seed``; ``official`` is the official code's one order.
        loss_average: ``tokens`` weighs all answer tokens of an optimizer step alike; ``micro_batches`` all batches.
        carry_optimizer: keep the optimizer's state from task to task (official code) instead of a fresh one.
        signal_dtype: precision of stored teacher signals: ``float32``, ``float16``, ``bfloat16`` or ``int8``.
        measure_every: gradient norms of the loss terms are measured on every so many batches of each kind; 0 never.
        checkpoint_every: inside a task the state is saved every so many optimizer steps, for ``--resume``; 0 saves it
            only between the phases of a task.
        keep_models: ``all`` models of a run or only the ``last``.
        progress: ``auto`` shows a bar on a terminal and plain lines elsewhere; ``bar``, ``lines``, ``none``.
    """

    learning_rate: float = 1e-5
    adam_beta2: float = 0.95
    per_device_train_batch_size: int = 8
    report_to: str | list[str] | None = "none"
    lr_scheduler_type: Any = None
    logging_steps: float = 10
    preset: str = "default"
    method: Any = "seekr"
    replay: Any = field(default_factory=dict)
    memory: Any = field(default_factory=dict)
    general: str | None = None
    general_samples: int | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False
    peft: Any = None
    quantization: str | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    max_answer_length: int | None = None
    long_completions: str = "refuse"
    boundary: str | None = None
    padding_side: str | None = None
    pad_multiple: int | None = None
    order: str | None = None
    loss_average: str | None = None
    carry_optimizer: bool | None = None
    signal_dtype: str | None = None
    measure_every: int = 20
    checkpoint_every: int = 200
    keep_models: str = "all"
    progress: str = "auto"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(
                f"preset: '{self.preset}' is unknown{nearest(self.preset, PRESETS)} ({', '.join(PRESETS)})"
            )
        preset = PRESETS[self.preset]
        for key, value in (_DEFAULTS | {k: v for k, v in preset.items() if k in _DEFAULTS}).items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        given = {"name": self.method} if isinstance(self.method, str) else _mapping(self.method, "method")
        given_replay = _mapping(self.replay, "replay")
        self.method_class: type[Method] = get_method(given.pop("name", "seekr"))
        self.method_settings = build_settings(
            self.method_class.Settings, _method_defaults(preset, self.method_class.name) | given, "method"
        )
        said = preset.get("replay", {}) | given_replay
        # Whoever says when replay comes says all of it: one way would contradict another.
        paper = {
            key: value
            for key, value in self.method_class.replay_defaults.items()
            if key not in _CADENCE or not said.keys() & _CADENCE
        }
        replay_defaults = preset.get("replay", {}) | paper
        self.replay_settings = build_settings(ReplaySettings, replay_defaults | given_replay, "replay")
        given_memory = _mapping(self.memory, "memory")
        self.peft = read_peft(self.peft)
        if self.peft is not None and self.method_class.adapters:
            raise ConfigError(f"peft: method {self.method_class.name} trains adapters of its own; remove peft")
        self.memory_settings: MemorySettings = build_settings(MemorySettings, given_memory, "memory")
        if "ratio" in given_replay and self.replay_settings.samples is not None:
            raise ConfigError("replay: 'ratio' and 'samples' are two ways to say the same; keep one of them")
        if "day_steps" in given_replay and self.replay_settings.clock != "updates":
            raise ConfigError("replay.day_steps: would be ignored; set replay.clock: updates, or remove it")
        if "attention_share" in given and self.method_settings.lambda2 != "auto":
            raise ConfigError("method.attention_share: would be ignored; set method.lambda2: auto, or remove it")
        if "logits_tail" in given and self.method_settings.logits_top_k is None:
            raise ConfigError("method.logits_tail: would be ignored; set method.logits_top_k, or remove it")
        if "projection_rate" in given and self.method_settings.projection == "none":
            raise ConfigError("method.projection_rate: would be ignored; set method.projection, or remove it")
        for key in ("attention_tail", "attention_eps"):
            if key in given and self.method_settings.target in ("hidden", "relations"):
                raise ConfigError(
                    f"method.{key}: would be ignored: it is about rows; set method.target: attention or values, or "
                    "remove it"
                )
        for key in ("attention_top_k", "attention_tail"):
            if key in given and self.method_settings.attention_signal != "top_k":
                raise ConfigError(f"method.{key}: would be ignored; set method.attention_signal: top_k, or remove it")
        for key in ("logits_top_k", "logits_tail", "attention_tail"):
            if key in given and getattr(self.method_settings, "teacher", "stored") == "adapter":
                raise ConfigError(
                    f"method.{key}: would be ignored, method.teacher: adapter stores no signals; remove it"
                )
        for key, known in _CHOICES.items():
            if getattr(self, key) not in known:
                raise ConfigError(
                    f"{key}: '{getattr(self, key)}' is unknown; choose from {', '.join(filter(None, known))}"
                )
        require_quantization(self.quantization)
        self.liger_kernel_config = liger_settings(self.use_liger_kernel, self.liger_kernel_config, self.use_cpu)
        _check_keeps(self.method_class, given_replay, given_memory, self.general)
        if self.general is None and self.general_samples is not None:
            raise ConfigError("general_samples: would be ignored; name the data with general, or remove it")
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and not value >= least:
                raise ConfigError(f"{key}: {value} must be at least {least}")
        if not self.num_train_epochs > 0:
            raise ConfigError(f"num_train_epochs: {self.num_train_epochs} must be above 0")
        for key in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key}: {getattr(self, key)} must lie between 0 and 1")
        if self.measure_every == 0 and getattr(self.method_settings, "lambda2", None) == "auto":
            raise ConfigError("measure_every: 0 switches the measurement off that method.lambda2: auto needs")
        # The library's own bar and its own saving take the place of the Trainer's.
        self.disable_tqdm = True
        self.save_strategy = "no"
        self.eval_strategy = "no"
        self.remove_unused_columns = False
        if ranks.launched() > 1 and not torch.cuda.is_available():
            # Without a GPU accelerate forms a group only of processes that ask for the CPU.
            self.use_cpu = True
        try:
            super().__post_init__()
            # Asking for the device is what makes the launched processes find each other.
            _ = self.device
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise ConfigError(f"training settings: {error}") from error
        ranks.require_all()
        if not ranks.is_first():
            self.progress = "none"


def _check_keeps(
    method: type[Method], replay: Mapping[str, Any], memory: Mapping[str, Any], general: str | None
) -> None:
    """Refuses settings of samples and of their schedule for a method that has no use for them."""
    if not method.keeps:
        if replay:
            raise ConfigError(f"replay: method {method.name} does not replay; drop the key or change the method")
        if memory:
            raise ConfigError(f"memory: method {method.name} keeps no samples; drop the key")
        if general is not None:
            raise ConfigError(f"general: method {method.name} keeps no samples; use a replay method")
    if not method.replays:
        for key in replay:
            if key not in KEEPING:
                raise ConfigError(
                    f"replay.{key}: would be ignored: {method.name} keeps samples but does not replay them on a "
                    f"schedule; only {', '.join(KEEPING)} are for it"
                )


KEEPING = ("ratio", "samples", "choice")
"""Replay settings that say what is kept, not when it comes back."""

_DEFAULTS: dict[str, Any] = {
    "boundary": "exact",
    "padding_side": "right",
    "pad_multiple": 1,
    "order": "shuffled",
    "loss_average": "tokens",
    "carry_optimizer": False,
    "signal_dtype": "int8",
    "lr_scheduler_type": "cosine",
}

_LEAST = {
    "seed": 0,
    "max_grad_norm": 0,
    "general_samples": 1,
    "pad_multiple": 1,
    "measure_every": 0,
    "checkpoint_every": 0,
    "max_length": 1,
    "max_prompt_length": 1,
    "max_answer_length": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
}

_CHOICES = {
    "boundary": ("exact", "joint"),
    "long_completions": ("refuse", "skip"),
    "padding_side": ("right", "left"),
    "order": ("shuffled", "official"),
    "loss_average": ("tokens", "micro_batches"),
    "signal_dtype": tuple(DTYPES),
    "dtype": ("float32", "bfloat16", "float16", "auto"),
    "quantization": (None, *QUANTIZATIONS),
    "keep_models": ("all", "last"),
    "progress": ("auto", "bar", "lines", "none"),
}


def _method_defaults(preset: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A preset's settings of a method; its ``replay`` is of the replay settings, and the method replay has none."""
    return {} if name == "replay" else dict(preset.get(name, {}))


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
    hints = typing.get_type_hints(SeekrConfig)
    values = {}
    for key, value in settings.items():
        if key in _OWN_BUSINESS:
            raise ConfigError(f"{source}: '{key}' would be ignored: {_OWN_BUSINESS[key]}; remove it")
        if key not in fields:
            known = [name for name in fields if name not in _OWN_BUSINESS]
            raise ConfigError(f"{source}: unknown key '{key}'{nearest(str(key), known)}")
        values[key] = _typed(value, hints[key], f"{source}: {key}")
    return SeekrConfig(output_dir=output_dir, **values)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {value!r} is not a mapping of settings")
    return dict(value or {})


def build_settings(kind: type, given: Mapping[str, Any], where: str) -> Any:
    """A settings dataclass from a mapping.

    Raises:
        ConfigError: for an unknown key, naming the nearest, or a value of the wrong type.
    """
    fields = [f.name for f in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    for key in given:
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(str(key), fields)} (known: {known})")
    return kind(**{key: _typed(value, hints[key], f"{where}.{key}") for key, value in given.items()})


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value as its field's type; YAML reads 1e-4 as a string, and 1 may stand for 1.0."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    plain = [kind for kind in kinds if kind in (bool, int, float, str, type(None))]
    if len(plain) < len(kinds) or not plain:
        return value
    if float in plain and (type(value) is str or (type(value) is int and int not in plain)):
        for kind in (int, float):
            if kind in plain:
                with suppress(ValueError, OverflowError):
                    value = kind(value)
                    break
    if type(value) is str and int in plain and float not in plain and str not in plain:
        # An environment variable in a YAML file is text.
        with suppress(ValueError):
            value = int(value)
    if type(value) in plain and value == value:  # not a number is never what a setting means
        return value
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in plain)
    raise ConfigError(f"{where}: {value!r} is not a {names}")

"""What a resumed run must share with the one it continues: settings, data, model, tokenizer."""

import json
from dataclasses import asdict
from typing import Any

from seekr_cl.config.rates import size_rule
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, DataError
from seekr_cl.memory import ReplayMemory
from seekr_cl.renamed import as_named_now
from seekr_cl.tasks import Task

_DECISIVE = (
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "optim"),
    *("optim_args", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "general", "general_samples", "dtype", "max_length"),
    *("max_prompt_length", "max_answer_length", "long_completions", "prompt_boundary", "padding_side", "pad_multiple"),
    *("train_on", "chat_template_kwargs", "template_date"),
    *("order", "group_by_length", "loss_average", "carry_optimizer", "signal_dtype", "measure_every", "peft"),
    *("quantization",),
)
"""Settings that decide the result, beside those of the method: with others a resumed run would be two runs in one."""


_IF_SET = ("task_loss", "average", "train")
"""The same of what is off unless it is asked for, so that what was begun before there was such a setting goes on."""


def decisive(config: SeekrConfig) -> dict[str, Any]:
    """The deciding settings by name, as JSON; where a measurement steers nothing, its interval decides nothing."""
    given = config.to_dict()
    settings = {key: given[key] for key in _DECISIVE} | {k: given[k] for k in _IF_SET if given[k] is not None}
    if config.evaluation.dtype != "auto":
        # What it follows from is decisive itself.
        settings["evaluation_dtype"] = config.evaluation.dtype
    if not config.method.steers:
        settings.pop("measure_every")
    if config.retention.on_drop == "more_replay":
        settings["retention"] = given["retention"]
    if not config.group_by_length:
        # As what was begun before there was the setting.
        settings.pop("group_by_length")
    later = config.method.kind.training_defaults.later_learning_rate
    if later is not None and config.training_sources["learning_rate"] == "method":
        settings["later_learning_rate"] = later
    rule = size_rule(config)
    if rule is not None:
        settings["default_learning_rate"] = rule
    return settings


def describe_method(config: SeekrConfig) -> dict[str, Any]:
    """Name and settings of the method and of replay, as JSON."""
    return {
        "name": config.method.name,
        "preset": config.preset,
        "settings": asdict(config.method.settings),
        "replay": asdict(config.replay) if config.method.kind.keeps else None,
        # Who may read the files decides nothing.
        "memory": {key: value for key, value in asdict(config.memory).items() if key != "mode"}
        if config.method.kind.keeps
        else None,
    }


def learning_identity(
    tasks: list[Task], store: ReplayMemory, config: SeekrConfig, model_sha256: str, tokenizer_sha256: str
) -> dict[str, Any]:
    """What one learning is: a checkpoint of it fits no other."""
    facts = {"model": model_sha256, "tokenizer": tokenizer_sha256, "generation": store.generation}
    return facts | task_identity(tasks, config)


def task_identity(tasks: list[Task], config: SeekrConfig) -> dict[str, Any]:
    """The part of ``learning_identity`` that is known without model and memory."""
    return _as_json(
        {
            "tasks": [{"name": one.name, "epochs": one.epochs, "data": one.fingerprint()} for one in tasks],
            "method": describe_method(config),
            "seed": config.seed,
            "processes": collectives.world_size(),
            "training": decisive(config),
        }
    )


def check_same_learning(saved: dict[str, Any], now: dict[str, Any], source: str) -> None:
    """Refuses to continue what was begun as something else.

    Raises:
        DataError: if the tasks' data changed.
        ConfigError: if anything else did; the message names it.
    """
    saved = as_named_now(saved)
    for key, value in now.items():
        before = saved.get(key)
        if before == value:
            continue
        if key == "tasks":
            names = [one["name"] for one in value]
            raise DataError(
                f"{source}: task {', '.join(map(repr, names))}: name, epochs or training data are not what this was "
                "begun with; resume with the same data, or remove that folder to begin again"
            )
        raise ConfigError(
            f"{source}: this was begun with another {difference(key, before, value)}; resume with what it was begun "
            "with, or remove that folder to begin again"
        )


def difference(key: str, before: Any, now: Any) -> str:
    """The innermost setting that differs, by name, with both values where they are short."""
    if isinstance(before, dict) and isinstance(now, dict):
        # By name, so that the same one is named each time, and the rule of a rate before the rate.
        for inner in sorted(now.keys() | before.keys()):
            if before.get(inner) != now.get(inner):
                return difference(f"{key}.{inner}", before.get(inner), now.get(inner))
    name = {
        "model": "model",
        "tokenizer": "tokenizer",
        "generation": "generation of the memory",
        "processes": "number of processes",
    }.get(key)
    if name in ("model", "tokenizer"):
        return name
    return f"{name or key.removeprefix('training.')} ({before!r}, now {now!r})"


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file, so that both sides compare alike."""
    return json.loads(json.dumps(content, default=str))

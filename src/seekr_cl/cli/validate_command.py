"""``seekr validate``: all that a run would check, without training."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from seekr_cl.cli.choices import fitted, trained_adapter
from seekr_cl.cli.output import out
from seekr_cl.config.rates import told, whole_rate_of
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.config.tried import try_settings
from seekr_cl.errors import ConfigError
from seekr_cl.models.context import DEFAULT_LENGTH
from seekr_cl.planning import Workload, make_plan
from seekr_cl.planning.fit import ROOM, Choice, advice, disk_need, known_shape, need
from seekr_cl.runs.validation import Check, Validation, Wanted, validate
from seekr_cl.system.machine import disk_free, this_machine
from seekr_cl.system.sizes import size
from seekr_cl.system.visible import visible

FEW = 8
"""Samples of a task below which more are advised: a batch has as many."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be validated.

    Attributes:
        wanted: model, tasks, folders and settings.
        settings: what the user set.
        source: the file, or how the settings are called.
        command: the command that would do it.
        choices: settings that the machine decides.
    """

    wanted: Wanted
    settings: dict[str, Any]
    source: str
    command: str
    choices: list[Choice]


def validated(asked: Asked, as_json: bool) -> None:
    """Validates and prints.

    Raises:
        ConfigError: if anything would be refused, after it has been printed.
    """
    config = asked.wanted.config
    try_settings(config)
    made = validate(asked.wanted)
    _check_room(made, asked)
    failed = sum(check.state == "failed" for check in made.checks)
    if as_json:
        content = {
            "ok": not failed,
            "checks": [asdict(check) for check in made.checks],
            "lengths": {name: asdict(one) for name, one in made.lengths.items()},
            "settings": _settings(made, asked),
            "command": asked.command,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _show(made, asked)
    if failed:
        raise ConfigError(f"{asked.source}: {failed} of {len(made.checks)} checks failed; mend what is listed above")


def _show(made: Validation, asked: Asked) -> None:
    console = out()
    signs = {
        "ok": ("ok", "green"),
        "warning": ("warn", "yellow"),
        "failed": ("FAIL", "bold red"),
        "skipped": ("-", "dim"),
    }
    for check in made.checks:
        word, style = signs[check.state]
        detail = f": {visible(check.detail)}" if check.detail else ""
        line = Text(f"{word:<5}", style=style).append(visible(check.name) + detail, style="default")
        console.print(line, soft_wrap=True)
    if made.lengths:
        table = Table("task", "examples", "tokens on average", "longest", "learned on average", "truncated", "limit")
        for name, one in made.lengths.items():
            numbers = (one.examples, round(one.mean), one.longest, round(one.learned), one.cut, one.limit)
            table.add_row(Text(visible(name)), *map(str, numbers))
        console.print(table)
    for key, said in _settings(made, asked).items():
        console.print(f"{key}: {said}", soft_wrap=True)
    if not made.failed:
        console.print(f"this would run: {visible(asked.command)}", soft_wrap=True)


def _settings(made: Validation, asked: Asked) -> dict[str, str]:
    """The settings that matter most, with reasons."""
    config = asked.wanted.config
    reasons = {one.key: one.reason for one in asked.choices}
    rate, source = whole_rate_of(config, made.parameters)
    half = "bf16" if config.bf16 else "fp16" if config.fp16 else None
    adapts = config.method.kind.adapters or made.trained < made.parameters
    adapter = ", the adapter's in float32" if adapts and config.dtype != "float32" else ""
    computed = (f"computed in {half}, weights in {config.dtype}" if half else f"all in {config.dtype}") + adapter
    batch, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    found = {
        "learning rate": told(rate, source).removeprefix("learning rate "),
        "precision": computed + (f" ({reasons['bf16']})" if "bf16" in reasons else ""),
        "batch": f"{batch} examples, {batch * steps} in an optimizer step"
        + (f" ({reasons['per_device_train_batch_size']})" if "per_device_train_batch_size" in reasons else ""),
        "epochs": _epochs(made, config),
    }
    if config.method.kind.keeps:
        kept = {name: config.replay.count(one.examples) for name, one in made.lengths.items()}
        few = any(count < FEW for count in kept.values()) and config.replay.samples is None and config.replay.ratio
        found["kept"] = ", ".join(f"{count} of {visible(name)}" for name, count in kept.items()) or "-"
        found["kept"] += f" (few: replay.samples={FEW} keeps more)" if few else ""
    return found


def _epochs(made: Validation, config: SeekrConfig) -> str:
    """One number where all tasks have the same."""
    different = set(made.epochs.values())
    if len(different) > 1:
        return ", ".join(f"{count:g} of {visible(name)}" for name, count in made.epochs.items())
    return f"{next(iter(different), config.num_train_epochs):g}"


def _check_room(made: Validation, asked: Asked) -> None:
    """Whether memory and disk hold it, from the model's shape."""
    wanted, config = asked.wanted, asked.wanted.config
    shape = known_shape(wanted.model)
    if made.failed or shape is None or not made.lengths:
        return
    adapter = trained_adapter(wanted.model, config, shape)
    tokens = max(one.longest for one in made.lengths.values())
    learned = max(1, round(max(one.learned for one in made.lengths.values())))
    examples = [one.examples for one in made.lengths.values()]
    epochs = [made.epochs[name] for name in made.lengths]
    work = Workload(examples, epochs, min(max(tokens, 2), DEFAULT_LENGTH * 64), min(learned, max(tokens, 2) - 1))
    plan = make_plan(shape, config, work, adapter)
    machine = this_machine(config.use_cpu)
    takes = need(shape, config, adapter, config.per_device_train_batch_size, tokens, bool(config.bf16 or config.fp16))
    total = takes.total + plan.overhead.device + plan.chosen.vram
    what = f"about {size(total)} of the {machine.name}'s {size(machine.memory)}"
    way = advice(takes, machine, config, adapter)
    if way is not None or total > ROOM * machine.memory:
        made.checks.append(Check("device memory", "warning", f"{what}; {way or 'close what else is running'}"))
    else:
        made.checks.append(Check("device memory", "ok", what))
    models = len(examples) if wanted.is_run and config.keep_models == "all" else 1 + wanted.is_run
    wants, free = disk_need(shape, config, adapter, models, plan.chosen.total), disk_free(wanted.output or Path("."))
    text = f"about {size(wants)} of {size(free)} free; the memory {size(plan.chosen.total)} of it"
    made.checks.append(Check("disk", "failed" if wants > free else "ok", text))


def asked_for(
    given: Any, settings: dict[str, Any], config_of: Callable[[Mapping[str, Any]], SeekrConfig], **wanted: Any
) -> Asked:
    """What a command line asks to have validated: its settings, with those that the machine decides.

    Args:
        given: the command's options.
        settings: of the file and the command line.
        config_of: makes a config of them.
        wanted: fields of ``Wanted``, without the config.
    """
    config, choices = fitted(settings, config_of, wanted["model"])
    return Asked(
        Wanted(config=config, **wanted), settings, given.stream_file or "settings", _command(given, wanted), choices
    )


def _command(given: Any, wanted: dict[str, Any]) -> str:
    output = given.output or "OUTPUT"
    more = ["--method", given.method] if given.method else []
    more += given.overrides
    if wanted.get("is_run"):
        model = ["--model", given.model] if given.model else []
        return shlex.join(["seekr", "run", given.stream_file, "--output", output, *model, *more])
    config = ["--config", given.stream_file] if given.stream_file else []
    name = ["--name", given.name] if given.name else []
    words = ["--model", given.model, "--task", given.task, "--memory", given.memory or "MEMORY", "--output", output]
    return shlex.join(["seekr", "learn", *words, *name, *config, *more])


__all__ = ["Asked", "asked_for", "validated"]

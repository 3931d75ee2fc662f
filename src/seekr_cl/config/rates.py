"""Which learning rate, scheduler and optimizer are taken where the user names none, and where each comes from.

The user's own setting wins, then the method's, the adapter's, the preset's and at last the library's. An adapter learns
nothing at the rate of full fine-tuning: LoRA's best rate is about ten times that of all weights, prompts want more yet.
Of all weights, a smaller model takes a higher one, so the library's own default follows the model's size.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from seekr_cl.config.average import as_json as average_json
from seekr_cl.config.presets import PRESETS, PUBLISHED
from seekr_cl.methods import Method
from seekr_cl.methods.task_loss import as_json
from seekr_cl.methods.training_defaults import TrainingDefaults

RATE = 1e-5
"""Of all weights: the SEEKR paper's, whose models have seven billion of them."""
_SIZE, _SHRINKS = 7e9, 0.4
"""GPT-3's rates fall from 6e-4 at 125 million weights to 1.2e-4 at 6.7 billion, about as size to the power of -0.4
(Brown et al. 2020, table 2.1)."""
_LOWEST, _HIGHEST = 5e-6, 5e-5
"""What the same table ends at in proportion, above 13 billion and below 125 million."""
ADAPTER_RATE = 2e-4
"""Of LoRA and its kin: QLoRA's for 7B and 13B models, and the rate of most fine-tuning tools."""
OTHER_ADAPTERS = {"PROMPT_TUNING": 3e-2, "PREFIX_TUNING": 1e-2, "IA3": 3e-3, "OSF": RATE}
"""The rates of PEFT's own examples; OSF trains whole matrices."""
FAR_OFF = 10
"""A rate that is so many times too large or too small is worth a warning."""
SETTLED = ("learning_rate", "lr_scheduler_type", "optim")
_LIBRARY = {
    "learning_rate": RATE,
    "lr_scheduler_type": "cosine",
    "optim": TrainingArguments.__dataclass_fields__["optim"].default,
}


class NoEffectWarning(UserWarning):
    """Something that was asked for will have no effect, or not the one that is expected."""


class DefaultRate(float):
    """A learning rate that nobody set, so that a copy of a config with another method takes that one's."""


def rate_of_size(parameters: int) -> float:
    """The learning rate of all weights for a model with so many, to one digit: the paper's at seven billion."""
    wanted = RATE * (_SIZE / max(1, parameters)) ** _SHRINKS
    return float(f"{min(_HIGHEST, max(_LOWEST, wanted)):.0e}")


def size_rule(config: Any) -> str | None:
    """How the learning rate follows from the model's size, in words; ``None`` where it does not."""
    if whole_rate_of(config, 1)[1] != "model size":
        return None
    return f"by model size: {RATE:g} at {_SIZE:g} weights, to the power of -{_SHRINKS:g}, {_LOWEST:g} to {_HIGHEST:g}"


def adapter_rate(peft_type: str) -> float:
    """The learning rate that an adapter of this PEFT type needs."""
    return OTHER_ADAPTERS.get(peft_type.upper(), ADAPTER_RATE)


def settle(
    given: Mapping[str, Any], method: type[Method], peft: Mapping[str, Any] | None, preset: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of ``SETTLED``, and where each comes from.

    Args:
        given: what the user set; ``None`` is nothing.
        method: whose defaults count.
        peft: the adapter that is asked for.
        preset: its top level.

    Returns:
        values by name, and for each ``user``, ``method``, ``adapter``, ``preset`` or ``library``.
    """
    adapter = {} if peft is None else {"learning_rate": adapter_rate(peft["peft_type"])}
    ranked = {"user": given, "adapter": adapter, "method": method.training_defaults.to_json(), "preset": preset}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in SETTLED:
        found = [name for name, one in ranked.items() if one.get(key) is not None]
        sources[key] = found[0] if found else "library"
        values[key] = ranked[found[0]][key] if found else _LIBRARY[key]
    if sources["learning_rate"] != "user":
        values["learning_rate"] = DefaultRate(float(values["learning_rate"]))
    return values, sources


def task_rate(config: Any, network: Any, later: bool) -> tuple[float, str]:
    """The learning rate of one task, and where it comes from.

    Args:
        config: a ``SeekrConfig``, which imports this.
        network: the model; an adapter that it came with is known only now.
        later: whether the method has learned a task before this one.
    """
    rate, source = float(config.learning_rate or 0.0), config.training_sources["learning_rate"]
    if rate != config.settled["learning_rate"]:
        return rate, "user"
    later_rate = config.method.kind.training_defaults.later_learning_rate
    if source == "method" and later and later_rate is not None:
        return later_rate, source
    if config.peft is None and not config.method.kind.adapters and hasattr(network, "peft_config"):
        needed = adapter_rate(_type(network))
        if source == "user":
            _warn_if_far(rate, [needed], "an adapter", config.optim)
        elif source in ("library", "preset"):
            return needed, "adapter"
    return whole_rate(config, network)


def whole_rate(config: Any, network: Any) -> tuple[float, str]:
    """The learning rate and where it comes from, leaving aside an adapter that the model comes with.

    A published preset is about the paper's model, whatever is trained by it.
    """
    return whole_rate_of(config, sum(weight.numel() for weight in network.parameters()))


def whole_rate_of(config: Any, parameters: int) -> tuple[float, str]:
    """``whole_rate`` of a model with so many weights."""
    rate, source = float(config.learning_rate or 0.0), config.training_sources["learning_rate"]
    if rate != config.settled["learning_rate"]:
        return rate, "user"
    if source == "library" and config.preset not in PUBLISHED:
        return rate_of_size(parameters), "model size"
    return rate, source


def _type(network: Any) -> str:
    kind = network.peft_config[network.active_adapter].peft_type
    return str(getattr(kind, "value", kind))


def warn_of_training(config: Any) -> None:
    """Says where the user's rate cannot be right, the optimizer is not the paper's, or the preset has no part in it."""
    method, defaults = config.method.kind, config.method.kind.training_defaults
    adapter = [] if config.peft is None else [adapter_rate(config.peft["peft_type"])]
    if config.training_sources["learning_rate"] == "user":
        what = "an adapter" if adapter else f"method {method.name}"
        _warn_if_far(float(config.learning_rate or 0.0), adapter or defaults.rates, what, config.optim)
    if config.preset == "small" and method.name not in PRESETS["small"]:
        warnings.warn(
            f"preset: small is about the signals that {' and '.join(PRESETS['small'])} store; it changes nothing for "
            f"method {method.name}; remove it",
            NoEffectWarning,
            stacklevel=4,
        )
    if defaults.paper_optim is not None and config.training_sources["optim"] != "user" and _is_adam(config.optim):
        warnings.warn(
            f"{method.name}: optim is {_name(config.optim)}, its paper's is {defaults.paper_optim}, so a step does not "
            f"go along the method's gradient as there; for the paper's set optim: {defaults.paper_optim} and a "
            "learning_rate found for it, to keep AdamW set optim",
            NoEffectWarning,
            stacklevel=4,
        )


def _warn_if_far(rate: float, needed: list[float], what: str, optim: Any) -> None:
    """Only of AdamW's kind: other optimizers' rates are on other scales. 0 is meant."""
    if not needed or not rate > 0 or not _is_adam(optim):
        return
    low, high = min(needed), max(needed)
    near = low if rate < low else high
    times = max(rate / near, near / rate) if rate < low or rate > high else 1.0
    if times < FAR_OFF * (1 - 1e-9):
        return
    effect = "hardly learn" if rate < low else "diverge"
    wanted = " to ".join(f"{one:g}" for one in sorted({low, high}))
    off = f"{times:.0f} times {'less' if rate < low else 'more'} than {what} needs ({wanted})"
    warnings.warn(
        f"learning_rate: {rate:g} is {off}; it may {effect}. Remove the setting, or set learning_rate: {near:g}",
        NoEffectWarning,
        stacklevel=5,
    )


def _name(optim: Any) -> str:
    return str(getattr(optim, "value", optim))


def _is_adam(optim: Any) -> bool:
    return "adam" in _name(optim).lower()


def told(rate: float, source: str) -> str:
    """A rate and why it is this one, for a person."""
    why = {
        "user": "",
        "model size": " (the default for all weights of a model of this size)",
        "adapter": " (the default for this kind of adapter)",
        "preset": " (the preset's)",
        "library": " (the default for all weights)",
    }
    return f"learning rate {rate:g}{why.get(source, f' (the default of the {source})')}"


def record(config: Any, args: Any, source: str, steps: int, new_steps: int, replay_steps: int) -> dict[str, Any]:
    """What a task was trained with, as JSON.

    Args:
        config: a ``SeekrConfig``, which imports this.
        args: those of this task.
        source: where its learning rate comes from.
        steps: optimizer steps that were made.
        new_steps: those that the new examples alone would have had.
        replay_steps: those that only replay asked for, beside the Trainer's own too.
    """
    beside: dict[str, Any] = {} if config.task_loss is None else {"task_loss": as_json(config.task_loss)}
    beside |= {} if config.train is None else {"train": config.train}
    beside |= {} if config.average is None else {"average": average_json(config.average)}
    return beside | {
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": _name(args.lr_scheduler_type),
        "optim": _name(args.optim),
        "optimizer_steps": steps,
        "new_steps": new_steps,
        "replay_steps": replay_steps,
        "from": config.training_sources | {"learning_rate": source},
    }


__all__ = [
    "NoEffectWarning",
    "TrainingDefaults",
    "adapter_rate",
    "rate_of_size",
    "record",
    "settle",
    "size_rule",
    "task_rate",
    "told",
    "warn_of_training",
    "whole_rate",
]

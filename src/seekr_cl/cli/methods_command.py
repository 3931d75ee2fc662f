"""``seekr methods``."""

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from seekr_cl.cli.output import out
from seekr_cl.config.rates import ADAPTER_RATE, RATE
from seekr_cl.methods import METHODS, Method, Paper
from seekr_cl.methods.options import OPTIONS


def needs(method: type[Method]) -> dict[str, bool]:
    """What a method cannot do without.

    Args:
        method: the class.

    Returns:
        ``memory``: samples of old tasks; ``adapters``: trains adapters or prompts and not the model's own weights;
        ``earlier_model``: the model before the task, held beside the one that is trained; ``all_tasks``: every task
        at once.
    """
    return {
        "memory": method.keeps and not method.generates,
        "adapters": method.adapters,
        "earlier_model": method.frozen_copy,
        "all_tasks": method.multi_task,
    }


def methods_command(given: Any) -> None:
    """Every registered method with its paper and needs, and the settings that have a paper of their own."""
    if given.json:
        found = [
            {
                "name": name,
                "about": _about(method),
                "paper": asdict(method.paper),
                "replays": method.replays,
                "needs": needs(method),
                "training_defaults": method.training_defaults.to_json(),
                "options": [asdict(option) for option in OPTIONS if option.suits(method)],
            }
            for name, method in METHODS.items()
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    table = Table("method", "needs", "trained with", "paper")
    for name, method in METHODS.items():
        wanted = ", ".join(need.replace("_", " ") for need, needed in needs(method).items() if needed)
        table.add_row(name, wanted or "-", method.training_defaults.describe() or "-", _cite(method.paper))
    out().print(table)
    out().print(
        "trained with: the method's own default, which learning_rate, lr_scheduler_type and optim replace; where there "
        f"is none, {RATE:g} for all weights, {ADAPTER_RATE:g} for a LoRA (peft), cosine, AdamW",
        soft_wrap=True,
    )
    more = Table("setting", "what it does", "paper")
    for option in OPTIONS:
        on = f"\nwith {option.on}" if option.on else ""
        more.add_row(f"{option.setting}={option.value}{on}", option.about, _cite(option.paper))
    out().print("With any method that has the setting (replay: all that replay; without a dot: all):", more)


def _cite(paper: Paper) -> str:
    return f"{paper.authors}: {paper.title}\n{paper.url}"


def _about(method: type[Method]) -> str:
    return " ".join((method.__doc__ or "").split("\n\n")[0].split())

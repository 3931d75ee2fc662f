"""``seekr methods``."""

import json
from typing import Any

from rich.table import Table

from seekr_cl.cli.output import out
from seekr_cl.methods import METHODS, Method


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
        "all_tasks": method.joint,
    }


def methods_command(given: Any) -> None:
    """Every registered method with its paper and needs."""
    if given.json:
        found = [
            {
                "name": name,
                "about": _about(method),
                "paper": {key: getattr(method.paper, key) for key in ("title", "authors", "url")},
                "replays": method.replays,
                "needs": needs(method),
            }
            for name, method in METHODS.items()
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    table = Table("method", "needs", "paper")
    for name, method in METHODS.items():
        wanted = ", ".join(need.replace("_", " ") for need, needed in needs(method).items() if needed)
        table.add_row(name, wanted or "-", f"{method.paper.authors}: {method.paper.title}\n{method.paper.url}")
    out().print(table)


def _about(method: type[Method]) -> str:
    return " ".join((method.__doc__ or "").split("\n\n")[0].split())

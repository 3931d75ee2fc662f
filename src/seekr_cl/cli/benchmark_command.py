"""``seekr benchmark``."""

import json
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from seekr_cl.cli.output import out
from seekr_cl.tasks.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from seekr_cl.tasks.benchmarks.fetch import fetch
from seekr_cl.training.progress import console


def list_command(given: Any) -> None:
    """``seekr benchmark list``."""
    if given.json:
        print(json.dumps([_described(one) for one in BENCHMARKS.values()], indent=2, ensure_ascii=False))
        return
    table = Table("benchmark", "tasks", "orders", "variants", "protocols", "metrics", "paper")
    for one in BENCHMARKS.values():
        metrics = {protocol.metric_of(task) for protocol in one.protocols.values() for task in one.tasks}
        table.add_row(
            one.name,
            str(len(one.tasks)),
            ", ".join(one.orders),
            ", ".join(one.variants) or "-",
            ", ".join(one.protocols),
            ", ".join(sorted(metrics)),
            f"{one.title}\n{one.url}",
        )
    out().print(table)


def _described(one: Benchmark) -> dict[str, Any]:
    return {
        "name": one.name,
        "paper": {"title": one.title, "url": one.url},
        "variants": list(one.variants),
        "tasks": list(one.tasks),
        "orders": {name: list(tasks) for name, tasks in one.orders.items()},
        "stand_ins": dict(one.stand_ins),
        "protocols": {
            name: {
                "source": protocol.source,
                "metrics": {task: protocol.metric_of(task) for task in one.tasks},
                "epochs": {
                    order: {task: protocol.epochs_of(task, order) for task in tasks}
                    for order, tasks in one.orders.items()
                },
                "max_new_tokens": protocol.max_new_tokens,
                "extract": protocol.extract,
                "settings": dict(protocol.settings),
                "always_otherwise": [dict(zip(("what", "official", "here"), fixed)) for fixed in protocol.fixed],
            }
            for name, protocol in one.protocols.items()
        },
    }


def fetch_command(given: Any) -> None:
    """``seekr benchmark fetch``."""
    benchmark = get_benchmark(given.name, "fetch")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    quiet = given.quiet or not console().is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True, disable=quiet) as bar:
        shown = bar.add_task(benchmark.name, total=None)
        done = fetch(
            benchmark,
            given.source,
            Path(given.output),
            variant=given.variant,
            tasks=given.tasks,
            partial=given.partial,
            sha256=given.sha256,
            progress=lambda what, at, total: bar.update(shown, description=what, completed=at, total=total),
        )
    given.answer = {"output": given.output, "rows": done.rows, "notes": list(done.notes)}
    table = Table("task", "train", "eval", "test")
    for task, rows in done.rows.items():
        table.add_row(task, *(str(rows.get(split, "-")) for split in ("train", "eval", "test")))
    out().print(table)
    for note in done.notes:
        out().print(f"not as published: {note}", soft_wrap=True)
    out().print(f"{benchmark.name} in {done.folder}, checksums in benchmark.json", soft_wrap=True)


COMMANDS = {"list": list_command, "fetch": fetch_command}

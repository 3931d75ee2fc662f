"""Writes docs/settings.md from the settings' own docstrings: ``python recipes/settings_page.py``.

A test fails when the page is not what this prints.
"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from seekr_cl.config.average import KINDS as AVERAGES
from seekr_cl.config.general import SelfWritten
from seekr_cl.evaluation.evaluation_config import EvaluationConfig
from seekr_cl.methods import METHODS
from seekr_cl.methods.common.logit_distillation import LogitSettings
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.methods.task_loss import KINDS as TASK_LOSSES
from seekr_cl.tasks.benchmarks.use import BenchmarkBlock
from seekr_cl.tasks.stream import TaskSpec
from seekr_cl.training import MemoryConfig, ReplayConfig, RetentionConfig, SeekrConfig

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = """# Settings

Written by `recipes/settings_page.py` from the docstrings. A key that is unknown, or that would be ignored, is an error.
Every field of transformers' `TrainingArguments` that is not about saving or evaluating can be set too
(`learning_rate`, `num_train_epochs`, `per_device_train_batch_size`, `gradient_accumulation_steps`, `bf16`, ...).
On the command line a dot goes into a mapping: `replay.ratio=0.02 method.heads=all`.
"""


def attributes(kind: type) -> dict[str, str]:
    """``{field: text}`` of a class's own Attributes section."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()).replace("``", "`") for name, words in found}


def table(title: str, intro: str, kind: type, names: list[str]) -> str:
    """One section."""
    about = attributes(kind)
    defaults = {field.name: _default(field) for field in dataclasses.fields(kind)}
    rows = [f"| `{name}` | {defaults[name]} | {about[name]} |" for name in names]
    return f"\n## {title}\n\n{intro}\n\n| key | default | what |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return "" if field.default is None else f"`{field.default}`"
    return "" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()}`"


def page() -> str:
    """The whole page."""
    shared = list(attributes(LogitSettings))
    parts = [
        HEAD,
        table(
            "Top level",
            "Beside `model`, `tasks` or `benchmark`, `probes` and `limit` in a stream.",
            SeekrConfig,
            list(attributes(SeekrConfig)),
        ),
        table(
            "replay",
            "Of every method that replays; those that only keep samples take `ratio`, `samples`, `choice`.",
            ReplayConfig,
            list(attributes(ReplayConfig)),
        ),
        table("memory", "Of every method that keeps samples.", MemoryConfig, list(attributes(MemoryConfig))),
        table(
            "retention",
            "Old tasks probed on stored samples while a new one is learned; see [gate.md](gate.md).",
            RetentionConfig,
            list(attributes(RetentionConfig)),
        ),
        table(
            "evaluation",
            "Of a run, `seekr evaluate` and `evaluate`.",
            EvaluationConfig,
            list(attributes(EvaluationConfig)),
        ),
        table("method: derpp and seekr", "`method: {name: derpp, ...}`", LogitSettings, shared),
        table("method: seekr", "And these.", SeekrSettings, list(attributes(SeekrSettings))),
        *(
            table(f"method: {name}", f"{method.paper.authors}: {method.paper.title}.", method.Settings, list(found))
            for name, method in METHODS.items()
            if (found := attributes(method.Settings)) and method.Settings not in (LogitSettings, SeekrSettings)
        ),
        table("general: self", "`general: {source: self, ...}`", SelfWritten, list(attributes(SelfWritten))),
        *(
            table(f"average: {kind}", f"`average: {{kind: {kind}, ...}}`", group, list(attributes(group)))
            for kind, group in AVERAGES.items()
        ),
        *(
            table(f"task_loss: {name}", f"`task_loss: {{name: {name}, ...}}`", kind, list(found))
            for name, kind in TASK_LOSSES.items()
            if (found := attributes(kind))
        ),
        table(
            "tasks",
            "Entries of a stream's `tasks` and `probes`. `probes` are scored at every stage and never trained on; "
            "a stream's `limit` holds for all tasks that say nothing themselves.",
            TaskSpec,
            list(attributes(TaskSpec)),
        ),
        table(
            "benchmark",
            "In place of `tasks`; see [benchmarks.md](benchmarks.md). On the command line: `benchmark.order=2`.",
            BenchmarkBlock,
            list(attributes(BenchmarkBlock)),
        ),
    ]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

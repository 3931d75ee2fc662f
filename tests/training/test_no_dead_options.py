"""No dead options: every setting of ours changes something that can be seen, and none can be added without a test.

A row says what to change, on top of which settings, and where it must show: in the new model, in the memory, in the log
or in what is warned of. The two runs differ in nothing but the row's change.
"""

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinylm import config_for, constant_task, memory_tensors, reverse_task, weights
from transformers import TrainingArguments

from seekr_cl.methods.logits import LogitSettings
from seekr_cl.methods.seekr import SeekrSettings
from seekr_cl.tasks import Example, Task
from seekr_cl.training import ReplaySettings, SeekrConfig, learn
from seekr_cl.training.run import run

REPLAY = {"samples": 3, "every": 1}


@dataclasses.dataclass(frozen=True)
class Row:
    """Settings in common, the change, and where it shows: ``weights``, ``memory``, ``log``, ``warning`` or ``error``."""

    change: Any
    shows: str
    common: dict[str, Any] = dataclasses.field(default_factory=dict)


def method(**settings: Any) -> dict[str, Any]:
    return {"method": {"name": "seekr", "layer_budget": None, "head_budget": 3, "query_budget": 4} | settings}


def replay(**settings: Any) -> dict[str, Any]:
    return {"replay": settings}


# A batch with a sample of each task, whose heads lie in different layers or are of different number.
MIXED = replay(samples=4, every=1, batch_size=8)

METHOD_ROWS = {
    "lambda1": Row(0.9, "weights"),
    "logits_top_k": Row(3, "memory"),
    "logit_alignment": Row("label", "memory"),
    "logit_form": Row("cross_entropy", "log"),
    "lambda2": Row(1.0, "weights"),
    "attention_share": Row(0.1, "weights", method(lambda2="auto") | {"measure_every": 1}),
    "heads": Row("random", "memory", method(head_budget=2)),
    "layer_budget": Row(1, "memory", method(head_budget=8)),
    "head_budget": Row(5, "memory"),
    "query_budget": Row(2, "memory"),
    "importance_rule": Row("sum_of_products", "choice"),
    "measure": Row("frobenius", "memory"),
    "attention_reduction": Row("sum", "weights"),
    "attention_eps": Row(0.1, "weights"),
    "query_replacement": Row(True, "memory", method(query_budget=40)),
    "gradient_leak": Row(True, "weights", {"carry_optimizer": True}),
}
REPLAY_ROWS = {
    "ratio": Row(0.5, "memory", replay(every=1)),
    "samples": Row(5, "memory"),
    "every": Row(2, "weights"),
    "share": Row(0.7, "weights", replay(samples=3)),
    "cadence": Row("official", "weights", replay(samples=3)),
    "batch_size": Row(1, "weights"),
    "choice": Row("first", "memory"),
    "step": Row("joint", "weights"),
}
OWN_ROWS = {
    "preset": Row("official", "memory", {"replay": {"samples": 3}}),
    "method": Row("derpp", "memory"),
    "replay": Row({"samples": 3, "every": 3}, "weights"),
    "general": Row("GENERAL", "memory"),
    "general_samples": Row(2, "memory", {"general": "GENERAL"}),
    "dtype": Row("bfloat16", "weights"),
    "trust_remote_code": Row(True, "loading"),
    "max_length": Row(8, "memory"),
    "max_prompt_length": Row(3, "memory"),
    "max_answer_length": Row(2, "error"),
    "long_completions": Row("skip", "warning", {"max_length": 11, "max_answer_length": 4}),
    "boundary": Row("joint", "memory", {"max_length": 9}),
    "padding_side": Row("left", "batches"),
    "pad_multiple": Row(16, "batches"),
    "order": Row("official", "weights"),
    "loss_average": Row("micro_batches", "weights", {"gradient_accumulation_steps": 2}),
    "carry_optimizer": Row(True, "weights"),
    "signal_dtype": Row("float16", "memory"),
    "measure_every": Row(1, "log"),
    "keep_models": Row("last", "run"),
    "progress": Row("lines", "screen"),
}
KINDS = {"method": SeekrSettings, "replay": ReplaySettings}


def own_fields() -> list[str]:
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [field.name for field in dataclasses.fields(SeekrConfig) if field.name not in base]


def test_every_setting_has_a_row() -> None:
    assert set(OWN_ROWS) == set(own_fields())
    assert set(REPLAY_ROWS) == {field.name for field in dataclasses.fields(ReplaySettings)}
    assert set(METHOD_ROWS) == {field.name for field in dataclasses.fields(SeekrSettings)}
    assert {field.name for field in dataclasses.fields(LogitSettings)} <= set(METHOD_ROWS)


def tasks() -> list[Task]:
    second = constant_task("no", "no", 10)
    # One answer of three letters among those of two, so that averages over tokens and over batches differ.
    return [reverse_task(count=9), dataclasses.replace(second, train=[*second.train, Example("xyz?", "never")])]


@dataclasses.dataclass
class Seen:
    """What one run of two tasks left to look at."""

    weights: dict[str, torch.Tensor]
    memory: dict[str, torch.Tensor]
    log: list[dict[str, Any]]
    warning: list[str]
    batches: list[tuple[int, ...]]


def observe(base: Path, folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Seen | str:
    """Learns two tasks; a refusal comes back as its text."""
    shapes: list[tuple[int, ...]] = []
    general = folder / "general.jsonl"
    general.parent.mkdir(parents=True, exist_ok=True)
    general.write_text("".join(f'{{"prompt": "say {c}:", "completion": "{c}{c}"}}\n' for c in "abcdefghijklmnop"))
    settings = {key: str(general) if value == "GENERAL" else value for key, value in settings.items()}
    place = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            config = config_for(settings.pop("method"), folder, **settings)
            for number, task in enumerate(tasks(), start=1):
                source, place = place or base, folder / f"m{number}"
                learnt = learn(source, task, folder / "memory", place, config, [ShapeSpy(shapes)])
        except ValueError as error:
            return str(error)
    log = [{key: value for key, value in line.items() if "_loss" not in key} for line in learnt.log if "loss" in line]
    said = [str(warning.message) for warning in caught]
    return Seen(weights(place), memory_tensors(folder / "memory"), log, said, shapes)

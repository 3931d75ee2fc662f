"""No dead options: every setting of ours changes something that can be seen, and none can be added without a test.

A row says what to change, where it must show (the new model's weights, the memory, the log, the batches, a warning, an
error, the screen, how the model is loaded) and on top of which settings. Two runs of two tasks differ in nothing else.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from tinylm import config_for, constant_task, differs, memory_tensors, reverse_task, teach, weights
from transformers import TrainingArguments

from seekr_cl.config.rates import NoEffectWarning
from seekr_cl.methods.common.logit_distillation import LogitSettings
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.models import source as model_source
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.selection import CHOICES
from seekr_cl.tasks import Example, Task
from seekr_cl.training import MemoryConfig, ReplayConfig, RetentionConfig, SeekrConfig
from seekr_cl.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Row:
    """What to change, where it shows, and the settings both runs have in common."""

    change: Any
    shows: str
    common: dict[str, Any] = dataclasses.field(default_factory=dict)


def method(**settings: Any) -> dict[str, Any]:
    return {
        "method": {"name": "seekr", "layer_budget": None, "head_budget": 3, "query_budget": 4, "lambda2": 50.0}
        | settings
    }


def replay(**settings: Any) -> dict[str, Any]:
    return {"replay": settings}


METHOD_ROWS = {
    "lambda1": Row(0.9, "weights"),
    "logits_top_k": Row(3, "memory"),
    "logit_alignment": Row("label", "memory"),
    "teacher": Row("adapter", "memory", {"peft": "lora"}),
    "logit_form": Row("cross_entropy", "log"),
    "lambda2": Row(1.0, "weights"),
    "attention_share": Row(0.1, "weights", method(lambda2="auto")),
    "heads": Row("random", "memory", method(head_budget=2)),
    "layer_budget": Row(1, "memory", method(head_budget=8)),
    "head_budget": Row(5, "memory"),
    "query_budget": Row(2, "memory"),
    "importance_rule": Row("sum_of_products", "memory", method(head_budget=2) | {"group_by_length": False}),
    "measure": Row("frobenius", "memory"),
    "target": Row("hidden", "memory"),
    "projection": Row("identity", "weights", method(target="hidden")),
    "projection_rate": Row(0.01, "weights", method(target="hidden", projection="identity")),
    "attention_reduction": Row("sum", "weights"),
    "attention_eps": Row(0.1, "weights"),
    "logits_tail": Row("bucket", "weights", method(logits_top_k=4)),
    "attention_signal": Row("factors", "memory"),
    "attention_top_k": Row(2, "memory"),
    "attention_tail": Row("bucket", "weights", method(attention_top_k=2)),
    "query_positions": Row("answer", "memory"),
    "query_replacement": Row(True, "memory", method(query_budget=40)),
    "gradient_leak": Row(True, "weights", {"carry_optimizer": True}),
}
REPLAY_ROWS = {
    "ratio": Row(0.5, "memory", replay(every=1)),
    "samples": Row(5, "memory"),
    "every": Row(2, "weights"),
    "share": Row(0.7, "weights", replay(samples=3)),
    "cadence": Row("official", "weights", replay(samples=3)),
    "clock": Row("updates", "weights", replay(samples=3, cadence="forgetting_curve")),
    "day_steps": Row(2, "weights", replay(samples=3, cadence="forgetting_curve", clock="updates", day_steps=1)),
    "batch_size": Row(1, "weights"),
    "choice": Row("first", "memory"),
    "task_weights": Row("similarity", "weights", {"general": "GENERAL", "replay": {"samples": 3, "every": 1}}),
    "sample_weights": Row("surprise", "weights", replay(samples=8, batch_size=8, every=1) | {"learning_rate": 0.02}),
    "step": Row("joint", "weights"),
    "over_tasks": Row("sum", "weights", {"general": "GENERAL", "replay": {"samples": 3, "every": 1}}),
}
MEMORY_ROWS = {
    "max_bytes": Row(9000, "memory", {"memory": {}}),
    "mode": Row("0640", "modes", {"memory": {}}),
}
RETENTION_ROWS = {
    "samples": Row(2, "probes", {"retention": {}}),
    "probe_every": Row(1, "probes", {"retention": {}}),
    # What these do to a task that is surely being lost is in test_retention.py.
    "max_drop": Row(90, "retention"),
    "on_drop": Row("more_replay", "retention"),
}
SCHEDULE_ROWS = {
    "cadence forgetting_curve": Row("forgetting_curve", "weights", replay(samples=3)),
}
TARGET_ROWS = {
    "target values": Row("values", "memory"),
    "target relations": Row("relations", "weights", method(target="hidden")),
    "projection random": Row("random", "weights", method(target="hidden", projection="identity")),
}
CHOICE_ROWS = {
    f"choice {name}": Row(name, "memory", replay(samples=3, every=1)) for name in CHOICES if name != "random"
}
OWN_ROWS = {
    "preset": Row("official", "memory", {"replay": {"samples": 3}}),
    "method": Row("derpp", "memory"),
    "train": Row("attention", "weights"),
    # Each of their kinds is in test_task_loss.py and test_averaging.py.
    "average": Row("wise_ft", "weights"),
    "task_loss": Row("dft", "weights"),
    "replay": Row({"samples": 3, "every": 3}, "weights"),
    "memory": Row({"max_bytes": "9kB"}, "memory"),
    # What it does to answers is in tests/evaluation/test_fast_answers.py.
    "evaluation": Row({"dtype": "float64"}, "error"),
    "retention": Row({"samples": 2}, "probes"),
    "general": Row("GENERAL", "memory"),
    "general_samples": Row(2, "memory", {"general": "GENERAL"}),
    "dtype": Row("bfloat16", "weights"),
    "trust_remote_code": Row(True, "loading"),
    "peft": Row("lora", "weights"),
    # Refused without an adapter; what it does is in test_quantised.py, where bitsandbytes is installed.
    "quantization": Row("4bit", "error"),
    "max_length": Row(8, "memory"),
    "max_prompt_length": Row(3, "memory"),
    "max_answer_length": Row(2, "error"),
    "long_completions": Row("skip", "error", {"max_length": 11, "max_answer_length": 4}),
    "prompt_boundary": Row("merged", "memory", {"max_length": 9}),
    # These are of conversations; what they do is in test_chat_learning.py.
    "train_on": Row("last", "chat"),
    "chat_template": Row("FILE", "chat"),
    "chat_template_kwargs": Row({"mark": "+"}, "chat"),
    "template_date": Row("2020-02-02", "chat"),
    "strip_thinking": Row(False, "chat"),
    "padding_side": Row("left", "batches"),
    "pad_multiple": Row(16, "batches"),
    "order": Row("official", "weights"),
    "group_by_length": Row(False, "batches"),
    # What it does must not show but in time; that rows share sequences is in test_packing.py and the invariants.
    "packing": Row(True, "error", {"method": {"name": "sapt"}}),
    "loss_average": Row("micro_batches", "weights", {"gradient_accumulation_steps": 2}),
    "carry_optimizer": Row(True, "weights"),
    "signal_dtype": Row("float16", "memory"),
    "measure_every": Row(1, "log"),
    "checkpoint_every": Row(1, "saved"),
    "keep_models": Row("last", "run"),
    "progress": Row("lines", "screen"),
}


def own_fields() -> list[str]:
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [field.name for field in dataclasses.fields(SeekrConfig) if field.name not in base]


def test_every_setting_has_a_row() -> None:
    assert set(OWN_ROWS) == set(own_fields())
    assert set(REPLAY_ROWS) == {field.name for field in dataclasses.fields(ReplayConfig)}
    assert set(METHOD_ROWS) == {field.name for field in dataclasses.fields(SeekrSettings)}
    assert set(MEMORY_ROWS) == {field.name for field in dataclasses.fields(MemoryConfig)}
    assert set(RETENTION_ROWS) == {field.name for field in dataclasses.fields(RetentionConfig)}
    assert {field.name for field in dataclasses.fields(LogitSettings)} <= set(METHOD_ROWS)


def tasks() -> list[Task]:
    second = constant_task("no", "no", 10)
    # One answer of three letters among those of two, so that averages over tokens and over batches differ.
    return [reverse_task(count=9), dataclasses.replace(second, train=[*second.train, Example("xyz?", "never")])]


def observe(
    base: Path, folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> dict[str, Any]:
    """Learns two tasks and returns what there is to see; a refusal is seen as its text."""
    shapes: list[tuple[int, ...]] = []
    loaded: list[tuple[Any, ...]] = []
    saved: list[str] = []
    fetch, load, save = ScheduledBatches.__getitem__, model_source.load_model, Checkpoints.save

    def watched_fetch(self: ScheduledBatches, index: int) -> dict[str, Any]:
        parts = fetch(self, index)
        shapes.extend((kind, *part["input_ids"].tolist()) for kind, part in parts.items())
        return parts

    def watched_load(*args: Any) -> Any:
        loaded.append(args[2:])
        return load(*args)

    def watched_save(self: Checkpoints, state: dict[str, Any], *rest: Any) -> None:
        saved.append(state["phase"])
        save(self, state, *rest)

    folder.mkdir()
    general = folder / "general.jsonl"
    general.write_text("".join(f'{{"prompt": "say {c}:", "completion": "{c}{c}"}}\n' for c in "abcdefghijklmnop"))
    settings = {key: str(general) if value == "GENERAL" else value for key, value in settings.items()}
    seen: dict[str, Any] = {"error": None, "batches": shapes, "loading": loaded, "saved": saved}
    with warnings.catch_warnings(record=True) as caught, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(ScheduledBatches, "__getitem__", watched_fetch)
        patch.setattr(model_source, "load_model", watched_load)
        patch.setattr(Checkpoints, "save", watched_save)
        try:
            done = teach(base, folder, tasks(), config_for(settings.pop("method"), folder, **settings))
        except ValueError as error:
            return seen | {"error": str(error)}
    lines = [line for line in done[-1].log if "loss" in line]
    memory = {key: value.float() for key, value in memory_tensors(folder / "memory").items()}
    return seen | {
        "weights": {key: value.float() for key, value in weights(folder / "m2").items()},
        "memory": memory,
        "probes": [done[-1].retention],
        "log": [{key: value for key, value in line.items() if key != "epoch"} for line in lines],
        "warning": [str(warning.message) for warning in caught if issubclass(warning.category, NoEffectWarning)],
        "screen": capsys.readouterr().err,
        "modes": sorted((path.name, path.stat().st_mode) for path in (folder / "memory").iterdir()),
    }


def same(left: Any, right: Any) -> bool:
    return not differs(left, right) if isinstance(left, dict) and isinstance(right, dict) else left == right


SEEN: dict[str, dict[str, Any]] = {}
ROWS = [("", key, row) for key, row in OWN_ROWS.items() if row.shows not in ("run", "chat")]
ROWS += [("method", key, row) for key, row in (METHOD_ROWS | TARGET_ROWS).items()]
ROWS += [("replay", key, row) for key, row in (REPLAY_ROWS | SCHEDULE_ROWS | CHOICE_ROWS).items()]
ROWS += [("memory", key, row) for key, row in MEMORY_ROWS.items()]
ROWS += [("retention", key, row) for key, row in RETENTION_ROWS.items() if row.shows != "retention"]


@pytest.mark.parametrize(("group", "key", "row"), ROWS, ids=[f"{group}.{key}".lstrip(".") for group, key, _ in ROWS])
def test_it_shows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, group: str, key: str, row: Row
) -> None:
    common: dict[str, Any] = method() | replay(samples=3, every=1) | row.common
    changed = common | ({group: common[group] | {key.split()[0]: row.change}} if group else {key: row.change})
    if repr(common) not in SEEN:  # most rows share what they are compared with
        SEEN[repr(common)] = observe(base, tmp_path / "one", common, monkeypatch, capsys)
    one = SEEN[repr(common)]
    other = observe(base, tmp_path / "other", changed, monkeypatch, capsys)
    errors = [seen["error"] for seen in (one, other) if seen["error"] is not None]
    assert len(errors) == (row.shows == "error"), errors
    assert not same(one[row.shows], other[row.shows]), f"{key} changed nothing in the {row.shows}"


def test_the_same_settings_show_no_difference(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without this a test that calls everything different would pass."""
    common: dict[str, Any] = method() | replay(samples=3, every=1)
    one, other = (observe(base, tmp_path / name, common, monkeypatch, capsys) for name in "ab")
    for shown in one:
        assert same(one[shown], other[shown]), shown

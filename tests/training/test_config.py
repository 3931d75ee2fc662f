"""One config: what is unknown, of the wrong type or would be ignored is refused; presets give only defaults."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from seekr_cl.config.presets import PRESETS
from seekr_cl.config.seekr_config import _DEFAULTS
from seekr_cl.config.trainer_settings import DECIDED
from seekr_cl.config.tried import try_settings
from seekr_cl.errors import ConfigError
from seekr_cl.methods import METHODS
from seekr_cl.methods.common.logit_distillation import LogitSettings
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.training import MemoryConfig, ReplayConfig, SeekrConfig, config_from


def make(**settings: Any) -> SeekrConfig:
    return config_from({"use_cpu": True} | settings, "unused", "c.yaml")


def own_fields() -> list[str]:
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [field.name for field in dataclasses.fields(SeekrConfig) if field.name not in base]


def keys(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def refused(pattern: str, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=pattern) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def misspelt(key: str) -> str:
    return key[:-1] + ("q" if key[-1] != "q" else "x") if len(key) > 5 else key + "s"


@pytest.mark.parametrize("key", [*own_fields(), "learning_rate", "per_device_train_batch_size", "warmup_steps"])
def test_an_unknown_key_names_the_nearest(key: str) -> None:
    refused(f"c.yaml: unknown key '{misspelt(key)}'; did you mean '{key}'", **{misspelt(key): 1})


@pytest.mark.parametrize("key", keys(ReplayConfig))
def test_an_unknown_replay_key(key: str) -> None:
    refused(f"replay: unknown key '{misspelt(key)}'; did you mean '{key}'.*known: ratio,", replay={misspelt(key): 1})


@pytest.mark.parametrize(
    ("name", "key"),
    [("seekr", key) for key in keys(SeekrSettings)] + [("derpp", key) for key in keys(LogitSettings)],
)
def test_an_unknown_method_key(name: str, key: str) -> None:
    near = "lambda" if key.startswith("lambda") else key  # lambda1 and lambda2 are equally near
    refused(f"method: unknown key '{misspelt(key)}'; did you mean '{near}", method={"name": name, misspelt(key): 1})


def test_unknown_choices_name_the_nearest_or_all() -> None:
    refused("method: 'seeker' is unknown; did you mean 'seekr'", method="seeker")
    refused("method: 5 is|method: '5' is unknown", method={"name": 5})
    refused("preset: 'oficial' is unknown; did you mean 'official'", preset="oficial")
    refused("method: unknown key 'lambda1'", method={"name": "replay", "lambda1": 0.5})
    refused("c.yaml: unknown key 'nonsense'", nonsense=1)


WRONG: dict[str, Any] = {
    "preset": 3, "method": 5, "replay": "often", "memory": "large", "general": 4, "general_samples": "many",
    "dtype": 32, "average": 3, "evaluation": 3, "retention": 3, "task_loss": 3, "train": 3,
    "trust_remote_code": "yes", "peft": 3, "quantization": 4,
    "max_length": 12.5, "max_prompt_length": "long", "max_answer_length": [1],
    "long_completions": True, "prompt_boundary": 1, "padding_side": False, "pad_multiple": 1.5, "order": 3,
    "group_by_length": "no", "packing": "rows",
    "loss_average": 0, "carry_optimizer": "no", "signal_dtype": 16, "measure_every": 2.5, "keep_models": 1,
    "train_on": True, "chat_template": 3, "chat_template_kwargs": "thinking", "template_date": 2024,
    "strip_thinking": "no",
    "checkpoint_every": "often",
    "progress": None,
    "replay.ratio": "much", "replay.samples": 2.5, "replay.every": 1.5, "replay.share": True, "replay.cadence": 1,
    "replay.batch_size": "4x", "replay.choice": None, "replay.task_weights": 1, "replay.step": 2,
    "replay.sample_weights": 1, "replay.clock": 1, "replay.day_steps": "many",
    "replay.over_tasks": 1,
    "memory.max_bytes": 2.5, "memory.mode": [6],
    "method.lambda1": "half", "method.logits_top_k": 6.4, "method.logits_tail": True,
    "method.logit_alignment": 1, "method.logit_form": None, "method.teacher": 1,
    "method.lambda2": "much", "method.attention_share": None, "method.heads": 8, "method.layer_budget": "most",
    "method.head_budget": True, "method.query_budget": [5], "method.importance_rule": 1, "method.measure": None,
    "method.attention_reduction": 3, "method.attention_signal": 1, "method.attention_top_k": 2.5,
    "method.attention_tail": 0, "method.attention_eps": "tiny", "method.query_replacement": 1,
    "method.query_positions": 1,
    "method.gradient_leak": "no", "method.target": 1,
    "method.projection": True, "method.projection_rate": "fast",
}  # fmt: skip


def nested(key: str, value: Any) -> dict[str, Any]:
    outer, _, inner = key.partition(".")
    return {outer: {inner: value}} if inner else {outer: value}


@pytest.mark.parametrize("key", WRONG)
def test_a_value_of_the_wrong_type(key: str) -> None:
    refused(key if "." in key else f"{key}.* is ", **nested(key, WRONG[key]))


def test_no_setting_goes_without_a_type_test() -> None:
    every = [*own_fields(), *(f"replay.{key}" for key in keys(ReplayConfig))]
    every += [f"memory.{key}" for key in keys(MemoryConfig)]
    assert set(WRONG) == {*every, *(f"method.{key}" for key in keys(SeekrSettings))}


OUT_OF_RANGE = [
    ("replay.ratio", -0.1), ("replay.ratio", 1.5), ("replay.samples", -1), ("replay.every", 0), ("replay.share", 1.0),
    ("replay.share", 0), ("replay.batch_size", 0), ("replay.cadence", "sometimes"), ("replay.choice", "last"),
    ("replay.over_tasks", "max"),
    ("replay.step", "both"), ("replay.task_weights", "most"), ("replay.sample_weights", "most"),
    ("replay.clock", "sun"), ("replay.day_steps", 0),
    ("memory.max_bytes", 0), ("memory.max_bytes", -5),
    ("memory.max_bytes", "2 GBit"), ("memory.max_bytes", "much"), ("memory.max_bytes", True),
    ("method.lambda1", 1.1), ("method.lambda1", -0.1), ("method.lambda2", -1),
    ("method.lambda2", "often"), ("method.lambda2", float("nan")), ("method.logits_top_k", 0),
    ("method.logit_alignment", "prev"), ("method.logit_form", "mse"), ("method.teacher", "parent"),
    ("method.heads", "best"),
    ("method.layer_budget", -1), ("method.head_budget", 1.5), ("method.query_budget", 0), ("method.query_budget", -3),
    ("method.importance_rule", "sum"), ("method.measure", "all"), ("method.attention_reduction", "max"),
    ("method.attention_eps", -1e-8), ("method.attention_top_k", 0), ("method.logits_tail", "cut"),
    ("method.attention_signal", "rows"), ("method.target", "logits"),
    ("method.query_positions", "prompt"),
    ("method.projection", "linear"), ("method.projection_rate", 0),
    ("method.attention_tail", "cut"), ("measure_every", -1), ("pad_multiple", 0), ("prompt_boundary", "rough"),
    ("padding_side", "top"), ("order", "sorted"), ("loss_average", "none"), ("signal_dtype", "int4"),
    ("dtype", "float8"), ("keep_models", "best"), ("progress", "loud"), ("long_completions", "cut"),
    ("checkpoint_every", -1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range(key: str, value: Any) -> None:
    refused(key, **nested(key, value))


def test_strings_that_yaml_does_not_read_as_numbers() -> None:
    text = (
        "{learning_rate: 1e-4, replay: {ratio: 2e-2}, method: {lambda2: 1e3, attention_eps: 1e-8, head_budget: 5e-1}}"
    )
    config = make(**yaml.safe_load(text))
    assert config.learning_rate == 1e-4
    assert config.replay.ratio == 0.02
    assert (config.method.settings.lambda2, config.method.settings.attention_eps) == (1000.0, 1e-8)
    assert config.method.settings.head_budget == 0.5
    numbers = [config.learning_rate, config.replay.ratio, config.method.settings.lambda2]
    assert [type(number) for number in numbers] == [float] * 3
    whole = make(num_train_epochs=2, method={"head_budget": 2, "lambda2": 5, "query_budget": "7"})
    assert (whole.num_train_epochs, whole.method.settings.lambda2) == (2.0, 5.0)
    assert type(whole.method.settings.head_budget) is int  # a count, where 2.0 would be a fraction
    assert whole.method.settings.query_budget == 7
    assert make(method={"lambda2": "auto"}).method.settings.lambda2 == "auto"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_defaults(preset: str) -> None:
    config, values = make(preset=preset), PRESETS[preset]
    for key in _DEFAULTS:
        assert getattr(config, key) == values.get(key, _DEFAULTS[key])
    for key in keys(SeekrSettings):
        assert getattr(config.method.settings, key) == values.get("seekr", {}).get(key, getattr(SeekrSettings(), key))
    for key in keys(ReplayConfig):
        given = values.get("replay", {}).get(key, getattr(ReplayConfig(), key))
        assert getattr(config.replay, key) == given
    derpp = make(preset=preset, method="derpp").method.settings
    for name in METHODS:
        assert make(preset=preset, method=name).method.kind.name == name
    assert derpp == LogitSettings(**values.get("derpp", {}))


def test_the_official_preset_is_the_official_code_whatever_the_defaults_become() -> None:
    config = make(preset="official")
    assert config.method.settings == SeekrSettings(
        lambda1=0.5, logits_top_k=None, logit_alignment="label", logit_form="cross_entropy", lambda2=1000.0,
        heads="importance", layer_budget=24, head_budget=128, query_budget=None, importance_rule="sum_of_products",
        measure="padded", attention_reduction="layer_mean", attention_eps=1e-8, query_replacement=True,
        gradient_leak=True, attention_signal="dense",
    )  # fmt: skip
    assert config.replay == ReplayConfig(ratio=0.01, cadence="official", choice="first", step="separate")
    assert (config.order, config.padding_side, config.pad_multiple, config.prompt_boundary) == (
        "official", "left", 8, "merged",
    )  # fmt: skip
    assert (config.loss_average, config.carry_optimizer, config.lr_scheduler_type) == (
        "micro_batches",
        True,
        "constant",
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_user_sets_wins_over_the_preset(preset: str) -> None:
    mine = {
        "prompt_boundary": "separate", "padding_side": "right", "pad_multiple": 3, "order": "shuffled",
        "loss_average": "tokens", "carry_optimizer": False, "signal_dtype": "bfloat16", "lr_scheduler_type": "linear",
    }  # fmt: skip
    method = {"measure": "valid", "attention_eps": 0.0, "lambda2": 3.0, "head_budget": None, "gradient_leak": False}
    config = make(preset=preset, method=method, replay={"choice": "random", "cadence": "volume", "every": 3}, **mine)
    assert {key: getattr(config, key) for key in mine} == mine
    assert {key: getattr(config.method.settings, key) for key in method} == method
    assert (config.replay.choice, config.replay.every) == ("random", 3)


@pytest.mark.parametrize("key", DECIDED)
def test_settings_of_the_trainer_that_would_do_nothing(key: str) -> None:
    refused(f"c.yaml: '{key}' would be ignored: .*; remove it", **{key: 1})
    assert key in {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"method": "seqft", "replay": {"ratio": 0.1}}, "replay: method seqft does not replay"),
        ({"method": "seqft", "memory": {"max_bytes": 9}}, "memory: method seqft keeps no samples"),
        ({"method": "multitask", "general": "x.jsonl"}, "general: method multitask keeps no samples"),
        ({"general_samples": 5}, "general_samples: would be ignored"),
        ({"general": "x", "general_samples": 0}, "general_samples: 0"),
        ({"replay": {"ratio": 0.1, "samples": 3}}, "'ratio' and 'samples'"),
        ({"replay": {"every": 2, "share": 0.1}}, "'every' and 'share'"),
        ({"replay": {"every": 2, "cadence": "official"}}, "'official' fixes when replay comes"),
        ({"replay": {"step": "joint", "cadence": "official"}}, "'official' fixes when replay comes"),
        ({"method": {"lambda2": 5, "attention_share": 0.3}}, "method.attention_share: would be ignored"),
        ({"method": {"lambda2": "auto"}, "measure_every": 0}, "measure_every: 0 switches the measurement off"),
        ({"lr_scheduler_type": "zigzag"}, "training settings"),
    ],
)
def test_combinations_of_which_one_would_be_ignored(settings: dict[str, Any], pattern: str) -> None:
    refused(pattern, **settings)


def test_the_trainer_may_not_save_or_evaluate_on_its_own(tmp_path: Path) -> None:
    config = SeekrConfig(output_dir=str(tmp_path), use_cpu=True, method=None, replay=None)
    assert (config.save_strategy, config.eval_strategy, config.method.name) == ("no", "no", "seekr")


def test_a_tail_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.logits_tail: would be ignored"):
        make(method={"name": "derpp", "logits_top_k": None, "logits_tail": "bucket"})


@pytest.mark.parametrize(("key", "value"), [("attention_top_k", 8), ("attention_tail", "bucket")])
def test_what_only_top_k_reads_is_refused_without_it(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key}: would be ignored"):
        make(method={"name": "seekr", "attention_signal": "dense", key: value})


@pytest.mark.parametrize("settings", [{"fsdp": "full_shard"}, {"torch_compile_backend": "os.system"}, {"optim": "x"}])
def test_refused_settings_leave_nothing_in_the_environment(settings: dict[str, Any]) -> None:
    before = dict(os.environ)
    with pytest.raises(ConfigError):
        try_settings(make(**settings))
    assert dict(os.environ) == before

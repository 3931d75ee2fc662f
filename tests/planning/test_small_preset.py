"""``preset: small``: what a sample takes at SmolLM2's size, and that a real memory takes what the plan says."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from tinylm import config_for, reverse_task, teach
from transformers import LlamaConfig

from seekr_cl.config.presets import PRESETS
from seekr_cl.config.rates import NoEffectWarning, rate_of_size, whole_rate_of
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.sample_codec import pack
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.planning.show import show_plan
from seekr_cl.system.sizes import size
from seekr_cl.training import config_from

LETTERS = 20
TOKENS, ANSWER = 2 * LETTERS + 2, LETTERS + 1
SMOLLM2 = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
)  # fmt: skip
WORK = Workload([500] * 2, [1.0] * 2, 1024, 128)


def test_a_sample_of_1024_tokens_takes_less_than_100_kb_on_smollm2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2.to_dict()))
    shape = read_shape(tmp_path)
    default = make_plan(shape, config_from({"use_cpu": True}, "unused"), WORK)
    small = make_plan(shape, config_from({"use_cpu": True, "preset": "small"}, "unused"), WORK)
    assert small.chosen.sample.stored <= 100_000 < 1_300_000 < default.chosen.sample.stored
    assert default.small == small.chosen
    assert small.small is None
    assert default.to_json()["preset_small"]["sample"]["stored"] == small.chosen.sample.stored
    console = Console(record=True, width=200)
    show_plan(default, console)
    assert "preset: small, 12 queries and fewer entries a row: a sample 95.6 kB" in console.export_text()


def test_who_keeps_attention_is_told_what_was_measured_of_derpp(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2.to_dict()))
    shape, adapted = read_shape(tmp_path), {"use_cpu": True, "peft": "lora"}
    plans = {
        method: make_plan(shape, config_from(adapted | {"method": method}, "unused"), WORK, adapter=10_000_000)
        for method in ("seekr", "derpp")
    }
    (note,) = plans["seekr"].notes
    assert f"method=derpp kept as much, a sample {size(plans['derpp'].chosen.sample.stored)} (" in note
    assert plans["derpp"].notes == ()
    (whole,) = make_plan(shape, config_from({"use_cpu": True}, "unused"), WORK).notes
    assert "method=derpp kept as much" in whole


@pytest.mark.parametrize(
    "more", [{}, {"query_positions": "answer"}, {"query_positions": "answer", "query_budget": 0.5}]
)
def test_a_real_sample_takes_what_the_plan_says(base: Path, tmp_path: Path, more: dict[str, object]) -> None:
    config = config_for(
        {"name": "seekr", **more}, tmp_path, preset="small", signal_dtype="int8", replay={"samples": 3, "every": 1}
    )
    teach(base, tmp_path, [reverse_task(count=9, length=LETTERS)], config)
    predicted = make_plan(read_shape(base), config, Workload([9], [1.0], TOKENS, ANSWER)).chosen
    given = PRESETS["small"]["seekr"]
    for _, kept in ReplayMemory.open(tmp_path / "memory").samples:
        assert sum(tensor.nbytes for tensor in pack([kept]).values()) == predicted.sample.stored
        assert kept.attention is not None
        queries = kept.attention.query_R
        assert len(queries) == predicted.queries == (round(0.5 * ANSWER) if "query_budget" in more else 12)
        assert kept.attention.rows.tensors()["code"].shape[-1] == given["attention_top_k"]
        assert kept.logits.tensors()["code"].shape[-1] == given["logits_top_k"]
        # The answer's tokens are predicted from one place before each.
        first = kept.completion_start - 1 if more else 0
        last = TOKENS - 2 if more else TOKENS - 1
        assert first <= int(queries.min()) <= int(queries.max()) <= last


@pytest.mark.parametrize("more", [{"preset": "small"}, {"method": {"name": "seekr", "teacher": "adapter"}}], ids=str)
def test_the_plan_of_an_adapter_compares_ways_that_take_no_number_of_entries(tmp_path: Path, more: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2.to_dict()))
    plan = make_plan(read_shape(tmp_path), config_from({"use_cpu": True, "peft": "lora"} | more, "x"), WORK, 1_000_000)
    assert plan.teachers["adapter" if "method" in more else "stored"] == plan.chosen.total


def test_small_is_no_published_preset(tmp_path: Path) -> None:
    """It says nothing of the rate, which follows from the model's size as by default."""
    rates = {
        preset: whole_rate_of(config_from({"use_cpu": True, "preset": preset}, str(tmp_path)), 135_000_000)
        for preset in ("small", "paper")
    }
    assert rates == {"small": (rate_of_size(135_000_000), "model size"), "paper": (1e-5, "library")}
    assert config_from({"use_cpu": True, "preset": "small", "method": "derpp"}, "t").method.settings.logits_top_k == 16
    with pytest.warns(NoEffectWarning, match="preset: small .* changes nothing for method replay; remove it"):
        config_from({"use_cpu": True, "preset": "small", "method": "replay"}, str(tmp_path))

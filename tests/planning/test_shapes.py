"""Models by their configs alone."""

import json

import pytest
from transformers import GptOssConfig, LlamaConfig, MambaConfig, MixtralConfig, Qwen3Config

from seekr_cl.errors import ModelError
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.planning import Workload, make_plan, read_shape
from seekr_cl.planning.official import official_cost
from seekr_cl.training import config_from

LLAMA_2_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000,
    max_position_embeddings=4096,
)  # fmt: skip
QWEN3_8B = Qwen3Config(
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, vocab_size=151936, max_position_embeddings=40960,
)  # fmt: skip
LLAMA_3_70B = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=8192,
)  # fmt: skip


def shape_of(config, folder):
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return read_shape(folder)


@pytest.mark.parametrize(
    ("config", "layers", "heads", "groups", "weights"),
    [
        (LLAMA_2_7B, 32, 1024, 32, 6.74e9), (QWEN3_8B, 36, 1152, 8, 8.19e9), (LLAMA_3_70B, 80, 5120, 8, 70.55e9),
    ],
    ids=["Llama-2-7B", "Qwen3-8B", "Llama-3-70B"],
)  # fmt: skip
def test_big_models(config, layers, heads, groups, weights, tmp_path):
    shape = shape_of(config, tmp_path)
    assert (len(shape.layers), sum(shape.heads.values())) == (layers, heads)
    assert {(layer.kv_heads, layer.size) for layer in shape.layers.values()} == {(groups, 128)}
    assert shape.parameters == pytest.approx(weights, rel=1e-2)
    assert shape.vocabulary == config.vocab_size
    assert shape == read_shape(tmp_path / "config.json")
    made = make_plan(shape, config_from({"use_cpu": True}, "unused"), Workload([500] * 2, [1.0] * 2, 1024, 100))
    assert made.chosen.heads == heads // 2
    assert made.chosen.times > 20
    assert len(made.others) == 9
    json.dumps(made.to_json())


def test_the_official_code_on_llama_2(tmp_path):
    """The numbers that were worked out from reading it (method.md): 197 MB, 39 MB, 604 MB, 241 GB for 50 samples."""
    cost = official_cost(shape_of(LLAMA_2_7B, tmp_path), 1536)
    found = [cost.logits, cost.attention, cost.attention_all, cost.held_all / 2 * 50]
    assert [round(part / 1e6) for part in found] == [197, 39, 604, 241592]


@pytest.mark.parametrize("kind", [MixtralConfig, GptOssConfig])
def test_experts_and_sinks(kind, tmp_path):
    config = kind(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=50, num_local_experts=2,
    )  # fmt: skip
    shape = shape_of(config, tmp_path)
    assert shape.heads == {0: 4, 1: 4}
    assert [(layer.kv_heads, layer.size, layer.sinks) for layer in shape.layers.values()] == [
        (2, 8, kind is GptOssConfig)
    ] * 2


def test_no_attention_is_said(tmp_path):
    with pytest.raises(ModelError, match="no softmax attention"):
        shape_of(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=30), tmp_path)


def test_budgets_change_the_plan(tmp_path):
    shape = shape_of(LLAMA_2_7B, tmp_path)

    def attention(**settings):
        config = config_from({"use_cpu": True, "method": {"name": "seekr"} | settings}, "unused")
        return make_plan(shape, config, Workload([500], [1.0], 1024, 100)).chosen.sample.attention

    usual = attention()
    assert SeekrSettings().query_budget == 100
    assert attention(query_budget=50) == pytest.approx(usual / 2, rel=0.01)
    assert attention(head_budget=128) == pytest.approx(usual / 4, rel=0.01)
    assert attention(attention_signal="dense") > 8 * usual

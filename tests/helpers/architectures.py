"""The causal LMs of transformers, tiny: one row a model. A new model is one row.

``SIZES`` makes any config small under whatever names it has for its sizes; a row adds what is the model's own.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB, WINDOW = 40, 4
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "sliding_window": WINDOW,
    # gpt2's names, opt's names
    **{"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    **{"ffn_dim": 48, "word_embed_proj_dim": 32},
    # mixtures of experts
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2},
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1},
    # latent attention
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6},
    # recurrent layers
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    **{"mamba_chunk_size": 4, "chunk_size": 4},
}
NO_DROPOUT = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout", "dropout")
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
HYBRID = ["linear_attention", "full_attention", "linear_attention"]
LATENT = {"num_key_value_heads": 4, "head_dim": 4}


STRICT, SINGLE = 1e-10, 1e-6
PER_HEAD = "the bias gets its gradient too; entries that it masks away for one head only still count in the sensitivity"
COMPRESSED = "its sliding layers only; layers that compress keys are refused as soon as a sequence has a compressed key"
FOUR = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
CAPPED = {"layer_types": MIXED, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0}
SHARED = {"num_hidden_layers": 4, "layer_types": FOUR, "num_kv_shared_layers": 2}
PER_LAYER_INPUT = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
SPARSE = {**LATENT, "index_topk": 3, "index_n_heads": 2, "index_head_dim": 8}


@dataclass(frozen=True)
class Architecture:
    """One model of the matrix.

    Attributes:
        kind: ``model_type`` of its config.
        special: what its attention has that plain causal attention with grouped heads has not.
        config: beside ``SIZES``.
        layers: the layers whose attention is tapped.
        implementation: the one that is tapped; "eager" where the model does not run on sdpa.
        deviation: what to know about its rows; shown in the docs.
        reference: how the reference differs from plain ``output_attentions``: "sink outside" where the eager function
            reports rows without the sink, "one map" where it computes the same map several times a layer.
        tolerance: of gradients and squared norms; larger where a model computes in float32 inside whatever its dtype.
        reason: part of the sentence that refuses it.
    """

    kind: str
    special: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = (0, 1, 2)
    implementation: str = "sdpa"
    deviation: str = ""
    reference: str = ""
    tolerance: float = STRICT
    reason: str = ""


def tapped(kind: str, special: str = "", *layers: int, **config: Any) -> Architecture:
    """A row of a model without anything to explain."""
    return Architecture(kind, special, config, layers or (0, 1, 2))


def on_eager(kind: str, special: str, **config: Any) -> Architecture:
    """A row of a model that does not run on sdpa."""
    return Architecture(kind, special, config, implementation="eager")


def sink_outside(kind: str, special: str) -> Architecture:
    """A row of a model whose eager function applies the sink to the output, in float32."""
    return Architecture(
        kind, special, implementation="eager", deviation=NO_SINK, reference="sink outside", tolerance=SINGLE
    )


NO_SINK = "its eager maps leave the sink out (it scales the output instead); ours count it, so rows sum to less than 1"
LEAKS = (
    "compared on eager: padding on the left leaks through its recurrent layers, and sdpa and eager fill it differently"
)
NANS = "compared on eager: on sdpa its gradients are nan with padding on the left, with or without a tap"
TWICE = "two calls a layer with one map and the halves of V: rows are taken once, sensitivity is of their sum"

MATRIX = [
    tapped("afmoe", "window, MoE, output gate"),
    tapped("apertus", "q/k norm"),
    tapped("arcee"),
    tapped("aria_text", "MoE"),
    tapped("axk1", "latent, MoE", **LATENT),
    tapped("axk2", "latent, MoE", **LATENT),
    tapped("bailing_hybrid", "hybrid, latent, MoE", 1, **LATENT, layer_types=HYBRID),
    tapped("bamba", "hybrid (Mamba-2)", 1, attn_layer_indices=[1]),
    tapped("beam"),
    tapped("biogpt", "learned positions"),
    tapped("bitnet", "1-bit weights"),
    tapped("cohere", "parallel block"),
    tapped("cohere2", "window, layers without positions", layer_types=MIXED),
    tapped("cohere2_moe", "window, MoE", layer_types=MIXED),
    tapped("ctrl", "sinusoidal positions"),
    tapped("cwm", "window", layer_types=MIXED),
    tapped("deepseek_v2", "latent, MoE", **LATENT, n_routed_experts=4, num_experts_per_tok=2),
    tapped("deepseek_v3", "latent, MoE", **LATENT),
    tapped("deepseek_v32", "latent, sparse keys, MoE", **SPARSE),
    Architecture(
        "deepseek_v4",
        "sinks, window, one key head, MoE",
        {"layer_types": ["sliding_attention"] * 3},
        implementation="eager",
        deviation=COMPRESSED,
    ),
    Architecture("diffllama", "differential", deviation=TWICE, reference="one map"),
    Architecture("doge", "bias learned from the values", deviation=PER_HEAD),
    tapped("dots1", "q/k norm, MoE", n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    tapped("ernie4_5"),
    tapped("ernie4_5_moe", "MoE"),
    tapped("exaone4", "window, q/k norm", layer_types=MIXED),
    tapped("exaone_moe", "window, MoE", layer_types=MIXED),
    tapped("falcon_h1", "hybrid (attention beside Mamba-2 in each layer)", lm_head_multiplier=2.0),
    tapped("flex_olmo", "q/k norm, MoE"),
    Architecture("flint", "sinks, window, MoE", implementation="eager", tolerance=SINGLE),
    tapped("gemma"),
    on_eager("gemma2", "window, soft-cap", **CAPPED),
    tapped("gemma3_text", "window, q/k norm", layer_types=MIXED, query_pre_attn_scalar=5),
    Architecture(
        "gemma3n_text",
        "window, shared keys and values",
        {**SHARED, **PER_LAYER_INPUT, "laurel_rank": 8},
        (0, 1, 2, 3),
        "eager",
        NANS,
    ),
    tapped(
        "gemma4_text",
        "window, shared keys and values, head size of the layer",
        *range(4),
        **SHARED,
        **PER_LAYER_INPUT,
        global_head_dim=16,
    ),
    tapped("glm"),
    tapped("glm4"),
    tapped("glm4_moe", "MoE"),
    tapped("glm4_moe_lite", "latent, MoE", **LATENT),
    tapped("glm_moe_dsa", "latent, sparse keys, MoE", **SPARSE),
    tapped("gpt2", "learned positions"),
    tapped("gpt_bigcode", "one key head"),
    tapped("gpt_neox", "parallel block"),
    on_eager("gpt_oss", "sinks, window, MoE", layer_types=MIXED),
    tapped("granite", logits_scaling=4.0),
    sink_outside("granite_swa", "sinks, window"),
    tapped("granitemoe", "MoE"),
    sink_outside("granitemoe_swa", "sinks, window, MoE"),
    tapped("granitemoehybrid", "hybrid (Mamba-2), MoE", 1, layer_types=["mamba", "attention", "mamba"]),
    tapped("granitemoeshared", "MoE"),
    tapped("helium"),
    Architecture("hunyuan_v1_dense", "q/k norm", {"head_dim": 8}, tolerance=SINGLE),
    Architecture("hunyuan_v1_moe", "q/k norm, MoE", {"head_dim": 8}, tolerance=SINGLE),
    tapped("hy_v3", "MoE"),
    on_eager("hy_v4", "sinks, sparse keys, MoE"),
    tapped("hyperclovax", logits_scaling=4.0),
    tapped("jais2"),
    tapped("jamba", "hybrid (Mamba), MoE", 1, attn_layer_period=2, attn_layer_offset=1),
    tapped("jetmoe", "MoE of attention heads"),
    tapped(
        "kimi_linear", "hybrid, latent, MoE", 1, **LATENT, layer_types=HYBRID, linear_head_dim=8, linear_num_heads=4
    ),
    tapped("kolibri1"),
    tapped("laguna", "window, heads of the layer"),
    tapped("lfm2", "hybrid (convolutions)", 1, layer_types=["conv", "full_attention", "conv"]),
    tapped("lfm2_moe", "hybrid (convolutions), MoE", 1, layer_types=["conv", "full_attention", "conv"]),
    tapped("lfm3", "hybrid", 2),
    tapped("llama"),
    tapped(
        "llama4_text",
        "chunks, MoE",
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
    ),
    tapped(
        "longcat_flash",
        "latent, two attentions a layer, MoE",
        0,
        1,
        **LATENT,
        num_layers=1,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=16,
    ),
    tapped("mellum", "window, MoE"),
    on_eager("mimo_v2_flash", "sinks, window, key heads of the layer, MoE"),
    tapped("minicpm3", "latent", **LATENT),
    tapped("minimax", "hybrid (lightning attention), MoE", 0, 2),
    tapped("minimax_m2", "q/k norm, MoE"),
    tapped("ministral", "window", layer_types=MIXED, head_dim=8),
    tapped("ministral3", "position-scaled queries"),
    tapped("mistral", "window"),
    tapped("mixtral", "window, MoE", sliding_window=WINDOW),
    tapped("modernbert-decoder", "window"),
    Architecture("nanochat", "q/k norm", tolerance=SINGLE),
    tapped("nemotron", head_dim=8, num_key_value_heads=2),
    tapped("nemotron_h", "hybrid (Mamba-2), MoE", 1, layers_block_type=["mamba", "attention", "moe"]),
    tapped("olmo"),
    tapped("olmo2", "q/k norm"),
    tapped("olmo3", "window, q/k norm", layer_types=MIXED),
    tapped("olmo_hybrid", "hybrid (gated delta net)", 1, layer_types=HYBRID),
    tapped("olmoe", "q/k norm, MoE"),
    tapped("opt", "learned positions"),
    tapped("persimmon", "q/k norm"),
    tapped("phi"),
    tapped("phi3"),
    tapped("phimoe", "MoE"),
    tapped("qwen2"),
    tapped("qwen2_moe", "MoE"),
    tapped("qwen3", "q/k norm"),
    tapped("qwen3_5_moe_text", "hybrid (gated delta net), MoE", 1, layer_types=HYBRID),
    tapped("qwen3_5_text", "hybrid (gated delta net)", 1, layer_types=HYBRID),
    tapped("qwen3_moe", "q/k norm, MoE"),
    tapped("qwen3_next", "hybrid (gated delta net), MoE", 1, layer_types=HYBRID),
    Architecture(
        "recurrent_gemma",
        "hybrid (RG-LRU), window",
        {"block_types": ["recurrent", "attention"], "attention_window_size": WINDOW},
        (1,),
        "eager",
        LEAKS,
    ),
    tapped("seed_oss"),
    tapped("smollm3", "layers without positions"),
    tapped("solar_open", "MoE"),
    tapped("stablelm"),
    tapped("starcoder2"),
    on_eager("vaultgemma", "window, soft-cap", **CAPPED),
    tapped("youtu", "latent", **LATENT),
    tapped("zaya", "convolved q and k, MoE", num_experts_per_tok=1),
]

OUTSIDE, NONE_AT_ALL = "does not go through transformers' AttentionInterface", "has no softmax attention at all"
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


def refused(kind: str, reason: str, **config: Any) -> Architecture:
    """A row of a model that cannot be tapped."""
    return Architecture(kind, config=config, layers=(), implementation="", reason=reason)


REFUSED = [
    refused("bloom", OUTSIDE),
    refused("codegen", OUTSIDE, rotary_dim=4),
    refused("falcon", OUTSIDE),
    refused("falcon_mamba", NONE_AT_ALL, state_size=4),
    refused("gpt_neo", OUTSIDE, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    refused("gpt_neox_japanese", OUTSIDE),
    refused("gptj", OUTSIDE, rotary_dim=4),
    refused("hrm_text", "runs attention layer 0 more than once in a forward pass"),
    refused("mamba", NONE_AT_ALL, state_size=4),
    refused("mamba2", NONE_AT_ALL, state_size=4, num_heads=4, head_dim=16, n_groups=1),
    refused("mpt", OUTSIDE, d_model=32, n_heads=4, n_layers=2),
    refused("openai-gpt", OUTSIDE),
    refused("rwkv", NONE_AT_ALL),
    refused("xglm", OUTSIDE, d_model=32, attention_heads=4, num_layers=2),
    refused("xlstm", NONE_AT_ALL, num_heads=4),
    refused("bert", "attends in both directions"),
    refused("t5", "is an encoder-decoder", d_model=32, d_ff=32, d_kv=8, num_heads=4, num_layers=2),
]


def make_config(row: Architecture) -> Any:
    """The row's config, as small as ``SIZES`` says."""
    known = CONFIG_MAPPING[row.kind]
    sizes = {key: size for key, size in SIZES.items() if _sized(known, key) or key in SPECIAL}
    sizes |= {key: 0.0 for key in NO_DROPOUT if hasattr(known, key)}
    config = AutoConfig.for_model(row.kind, **{**sizes, **row.config})
    # The grouped kernels of mixtures of experts know no float64.
    config._experts_implementation = "eager"
    return config


def _sized(known: type, key: str) -> bool:
    """Whether a config class has a size of this name that is in use: ``None`` is something that it does without."""
    value = getattr(known, key, None)
    return value is not None and not isinstance(value, property)


def build(row: Architecture, implementation: str | None = None):
    """The row's model with random weights, in float64; the same ones at every call."""
    torch.manual_seed(5)
    kind = AutoModelForSeq2SeqLM if row.kind == "t5" else AutoModelForCausalLM
    wanted = row.implementation if implementation is None else implementation
    model = kind.from_config(make_config(row), **({"attn_implementation": wanted} if wanted else {}))
    for name, parameter in model.named_parameters():
        # Sinks that start at zero take next to nothing from scores as large as these: a forgotten one would not show.
        if "sink" in name:
            torch.nn.init.normal_(parameter, mean=6.0)
    return model.double().eval()


def eager_twin(row: Architecture, model):
    """The same weights on the eager implementation, whose attention maps can be seen."""
    twin = build(row, "eager")
    twin.load_state_dict(model.state_dict())
    return twin

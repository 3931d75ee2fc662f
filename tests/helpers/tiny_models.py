"""Tiny random models of several families, their eager twins, and batches for them. A new model is one row of TABLE."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

LENGTH, VOCAB = 11, 40
WINDOW = 4
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = {**BASE, "num_key_value_heads": 2, "head_dim": 8}


@dataclass(frozen=True)
class Row:
    """A family: its config, whether it runs on sdpa, the windows of its layers."""

    kind: str
    config: dict[str, Any] = field(default_factory=lambda: GROUPED)
    sdpa: bool = True
    windows: tuple[int | None, ...] = (None, None, None)


ALTERNATING = ("sliding_attention", "full_attention", "sliding_attention")
TABLE = {
    "llama-gqa": Row("llama"),
    "qwen3": Row("qwen3"),
    "mistral-window": Row("mistral", {**GROUPED, "sliding_window": WINDOW}, windows=(WINDOW,) * 3),
    "gemma2": Row(
        "gemma2",
        {
            **GROUPED,
            "sliding_window": WINDOW,
            "layer_types": list(ALTERNATING),
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 5,
        },
        sdpa=False,
        windows=(WINDOW, None, WINDOW),
    ),
    "gemma3": Row(
        "gemma3_text",
        {**GROUPED, "sliding_window": WINDOW, "layer_types": list(ALTERNATING), "query_pre_attn_scalar": 5},
        windows=(WINDOW, None, WINDOW),
    ),
    "gpt-neox": Row("gpt_neox", BASE),
    "gpt2": Row(
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.3,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
    ),
    "phi": Row("phi", BASE),
}
SETUPS = [(name, kind) for name, row in TABLE.items() for kind in ("sdpa", "eager") if row.sdpa or kind == "eager"]
each_setup = pytest.mark.parametrize(("name", "implementation"), SETUPS, ids=lambda value: value)
each_padding = pytest.mark.parametrize("padding", ["none", "left", "right"])


def build(name: str, implementation: str, dtype: torch.dtype = torch.float32):
    """A model with random weights; the same ones at every call."""
    row = TABLE[name]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(row.kind, **row.config, **special)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    return model.to(dtype).eval()


def twin_of(model, name: str):
    """The same weights on the eager implementation, whose attention maps can be seen."""
    twin = build(name, "eager", model.dtype)
    twin.load_state_dict(model.state_dict())
    return twin


def make_batch(padding: str) -> dict[str, Tensor]:
    """Three samples; labels only where the token before is real, so that no loss is predicted from padding."""
    generator = torch.Generator().manual_seed(2)
    lengths = [LENGTH] * 3 if padding == "none" else [LENGTH, 7, 5]
    batch = {
        "input_ids": torch.randint(3, VOCAB, (3, LENGTH), generator=generator),
        "attention_mask": torch.zeros(3, LENGTH, dtype=torch.long),
    }
    batch["labels"] = torch.full((3, LENGTH), -100)
    for number, length in enumerate(lengths):
        start = LENGTH - length if padding == "left" else 0
        batch["attention_mask"][number, start : start + length] = 1
        labelled = slice(start + length // 2, start + length)
        batch["labels"][number, labelled] = batch["input_ids"][number, labelled]
    batch["input_ids"] *= batch["attention_mask"]
    return batch


def run(model, batch: dict[str, Tensor], **kwargs):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return model(**inputs, use_cache=False, **kwargs)


def checkpoint_layers(model, reentrant: bool) -> None:
    """Gradient checkpointing of either kind, under its name before and after transformers 5.23."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    else:
        enable({"use_reentrant": reentrant})


def valid(real_BL: Tensor, window: int | None) -> Tensor:
    """Entries [B, L, L] that a head can use: real query, real key, causal, inside the window."""
    length = real_BL.shape[1]
    query, key = torch.arange(length)[:, None], torch.arange(length)
    seen = (key <= query) & (key > query - (window or length))
    return seen & real_BL.bool()[:, :, None] & real_BL.bool()[:, None, :]


@pytest.fixture
def exact_softmax(monkeypatch):
    """Keeps transformers' eager attention in the dtype of its scores.

    It asks for a float32 softmax, which costs a float64 reference half of its digits, and turns float64's lowest mask
    value into minus infinity, hence rows of padding into nan.
    """
    original = torch.nn.functional.softmax

    def softmax(values: Tensor, dim: int, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return original(values, dim, dtype=None if values.dtype == torch.float64 else dtype, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)

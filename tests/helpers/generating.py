"""Models that really generate: random ones of a few thousand weights, and a small trained one if it is at hand."""

import os
from pathlib import Path

import pytest
import torch
from tinylm import char_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "abcdefghijklmnopqrstuvwxyz =?.中文"
Pair = tuple[PreTrainedModel, PreTrainedTokenizerFast]


def random_model(family: str) -> Pair:
    """Two layers with weights large enough that no two tokens are equally likely."""
    shape = {
        "vocab_size": 4 + len(LETTERS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 96, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = {
        "llama": lambda: LlamaConfig(**shape, num_key_value_heads=2),
        "qwen3": lambda: Qwen3Config(**shape, num_key_value_heads=2, head_dim=8),
        "gpt_neox": lambda: GPTNeoXConfig(**shape),
    }[family]()
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(config).float(), char_tokenizer(LETTERS)


def stories_folder() -> Path:
    folder = Path(os.environ.get("SEEKR_SHARED", ROOT / ".." / "shared")) / "data" / "tiny_lm" / "stories260K"
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is absent; set SEEKR_SHARED to the folder with the real model")
    return folder


def stories() -> Pair:
    folder = stories_folder()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)

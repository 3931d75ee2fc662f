"""Hashes that tie a memory to the model and the tokenizer it was made with."""

import hashlib
import json

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase


def model_hash(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all parameters; buffers are derived and left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters(), key=lambda item: item[0]):
        # Of a sharded model, which all its processes ask for, the hash is that of the whole.
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        content = full.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
        digest.update(content.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the vocabulary, the special tokens and the chat template: what decides the token ids of a text."""
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        "chat_template": getattr(tokenizer, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

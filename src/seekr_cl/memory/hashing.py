"""Hashes that tie a memory to the model and the tokenizer it was made with."""

import hashlib
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


def model_hash(model: nn.Module, whole: Callable[[Tensor], Tensor] = lambda parameter: parameter) -> str:
    """sha256 over the names, types, shapes and bytes of all parameters; buffers are derived and left out.

    Args:
        model: the model.
        whole: gives all of a parameter of which this process may hold a part.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters(), key=lambda item: item[0]):
        content = whole(tensor).detach().cpu().contiguous()
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

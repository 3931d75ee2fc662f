"""Hashes that tie a memory to the model and the tokenizer it was made with."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_PROBE = (
    "The quick brown fox, it's MINE: don't we'll I'd; Hello  World   tabs\there\n\nnew lines\r\n    four spaces \n",
    " 1 12 123 1234567890 3.14 -7 1,000,000 x_1 camelCase SNAKE_CASE http://a.b/c?d=e&f#g user@mail.org $5 50% [x]{y}",
    "caf\u00e9 cafe\u0301 \u212b \uff21\uff42\uff11\uff12\uff13 \ufb01nal \u00bd \u2460 \u3392 \u1112\u1161\u11ab",
    "\u00ad\u200b\u200d\ufeff\u00a0\u3000x \x01\x7f``''--...!!!",
    "\u0130stanbul stra\u00dfe \u03a3\u03c3\u03c2 Привет שלום مرحبا नमस्ते สวัสดี 你好世界 こんにちは 한국",
    "\u201cquotes\u201d \u2018a\u2019 \u2014 \u2013 \u2026 \u00ab\u00bb \u20ac \u2603 \U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001d400",
    "".join(map(chr, range(32, 127))),
)  # fmt: skip
"""Texts on which tokenizers part ways: cases, digits, spaces, accents, compatibility forms, scripts, punctuation."""

_WORDS = 500
"""How many of the vocabulary's own tokens are asked as texts: an English probe says nothing of other vocabularies."""

_LITERALS = ("pattern", "content", "prepend", "replacement", "String", "Regex", "pattern_string", "unk_token")


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
    """sha256 over what decides the token ids of a text: vocabulary, special tokens, chat template and pipeline.

    Of normalizer, pre-tokenizer, merges and post-processor it holds what they do to probing texts, with and without
    special tokens, and the literals that they look for. Their settings as a file spells them change with the version
    of the library ``tokenizers`` and would refuse a memory for nothing.
    """
    return _sha256(_named(tokenizer) | {"pipeline": _behaviour(tokenizer)})


def accepted_hashes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """``tokenizer_hash``, and the hash without the pipeline that older memories hold."""
    return tokenizer_hash(tokenizer), _sha256(_named(tokenizer))


def _named(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        "chat_template": getattr(tokenizer, "chat_template", None),
    }


def _behaviour(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    words = sorted(tokenizer.get_vocab())
    some = words[:: max(1, len(words) // _WORDS)]
    special = sorted(
        {str(token) for token in tokenizer.all_special_tokens} | {*[*tokenizer.get_added_vocab()][:_WORDS]}
    )
    texts = [*_PROBE, "a", "A", " a ", "\na", *(f"x{token} y {token}\n{token}Z" for token in special), *some]
    both = zip(*(_ids_of_all(tokenizer, texts, with_special) for with_special in (False, True)))
    found: list[Any] = [ids for of_text in both for ids in of_text]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        parts = [content.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor")]
        literals = sorted(set(_literals(parts)))
        found += [literals, *_ids_of_all(tokenizer, [f"a {text} b{text}c" for text in literals], False)]
    return found


def _ids_of_all(tokenizer: PreTrainedTokenizerBase, texts: list[str], with_special: bool) -> list[list[int] | None]:
    try:  # at once, which takes a fifth of the time
        return [list(ids) for ids in tokenizer(texts, add_special_tokens=with_special, verbose=False)["input_ids"]]
    except Exception:  # no texts, or one of them is refused
        return [_ids(tokenizer, text, with_special) for text in texts]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, with_special: bool) -> list[int] | None:
    try:
        return list(tokenizer(text, add_special_tokens=with_special, verbose=False)["input_ids"])
    except Exception:  # a vocabulary of whole words without a token for unknown ones refuses a text
        return None


def _literals(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _literals(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _LITERALS and isinstance(item, str):
                yield item
            yield from _literals(item)


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

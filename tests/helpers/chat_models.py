"""Small tokenizers with a chat template, and where other people's templates lie."""

import importlib.util
import re
from datetime import datetime
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def trl_templates() -> Path:
    """The folder of templates in the package trl, which is not imported for it."""
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl is not installed; pip install --no-deps --constraint constraints.txt trl")
    return Path(found.submodule_search_locations[0]) / "chat_templates"


def byte_tokenizer(template: str | None, special: tuple[str, ...] | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, but for the template's markers, or those named: these are special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **NAMES)
    marks = set(re.findall(r"<[^<>\s'\"{}]{1,40}>", template or "")) if special is None else special
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks)})
    tokenizer.chat_template = template
    return tokenizer


class _July(datetime):
    """What templates with a date are to write."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def rendered(template: str, messages, answer: bool = False, tools=None, **told) -> str:
    """What transformers makes of a template, with none of our code in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", _July)
        made, _ = chat_template_utils.render_jinja_template(
            [[dict(turn) for turn in messages]], tools=tools, chat_template=template, add_generation_prompt=answer,
            **NAMES, **told,
        )  # fmt: skip
    return made[0]

"""Tokenizers and shared data for the tests of tasks; what is not there is skipped with a reason."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def build_tokenizer(front: bool = False, back: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte tokenizer whose only merge is "A:" + "B" style glue over a border: ':' followed by 'B'."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", *alphabet, ":B"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(":", "B")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if front or back:
        single = ("<s> " if front else "") + "$A" + (" </s>" if back else "")
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(params=[(False, False), (True, False), (True, True)], ids=["bare", "bos", "bos+eos"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return build_tokenizer(*request.param)


@pytest.fixture
def make_tokenizer():
    return build_tokenizer


@pytest.fixture(params=["data/tiny_lm/stories260K", "golden/caseA/m0"])
def real_tokenizer(request: pytest.FixtureRequest, shared: Path):
    folder = shared / request.param
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"{folder} holds no tokenizer")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def write(tmp_path: Path):
    """Write a file below tmp_path: text or bytes as they are, anything else as JSON."""

    def _write(name: str, content: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return _write

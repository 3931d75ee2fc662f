"""A tiny model, tiny tasks and commands run as processes: what the tests of the command line share."""

import hashlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from zygote import Done

LETTERS = "abcdefgh=?中文"
SETTINGS = {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 4, "replay": {"ratio": 0.5}}
"""Settings that make a task a matter of a few steps."""
FAST = ["use_cpu=true", "num_train_epochs=1", "per_device_train_batch_size=4", "replay.ratio=0.5"]
"""The same on the command line."""


Seekr = Callable[..., Done]


@dataclass(frozen=True)
class World:
    """What every test may read and none may change.

    Attributes:
        folder: holds all the others.
        base: a model.
        first: a task.
        second: another task.
        learnt: the model after the first task.
        memory: the memory after the first task.
        stream: both tasks.
        run: a finished run of the stream.
    """

    folder: Path
    base: Path
    first: Path
    second: Path
    learnt: Path
    memory: Path
    stream: Path
    run: Path

    def learn(self, folder: Path, /, *more: object, **instead: object) -> list[object]:
        """``seekr learn`` of the first task into ``folder``, with some options swapped for others."""
        given = {"model": self.base, "task": self.first, "memory": folder / "memory", "output": folder / "model"}
        return [
            "learn",
            *(part for key, value in (given | instead).items() for part in (f"--{key}", value)),
            *FAST,
            *more,
        ]

    def stream_with(self, folder: Path, /, **settings: object) -> Path:
        """The stream with other settings, as a file of its own."""
        return write_stream(folder / "stream.yaml", self.base, [self.first, self.second], **settings)


def tokenizer_of(letters: str = LETTERS, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token for each character."""
    vocab = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def save_model(folder: Path, seed: int = 0, pad: bool = True) -> Path:
    """A Llama of two layers with four heads each and a context of 48 tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0 if pad else None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_of(pad=pad).save_pretrained(folder)
    return folder


def write(path: Path, content: object) -> Path:
    """Text or bytes as they are, anything else as JSON, which is YAML as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_task(folder: Path, shift: int = 0) -> Path:
    """Letters to be written twice, in TRACE's layout."""
    for split, count in (("train", 6), ("test", 3)):
        letters = ["abcdefgh"[(number + shift) % 8] for number in range(count)]
        write(folder / f"{split}.json", [{"prompt": f"{letter}=", "answer": letter * 2} for letter in letters])
    return folder


def write_stream(path: Path, model: Path, tasks: list[Path], /, **settings: object) -> Path:
    """A stream's YAML."""
    entries = [{"data": str(task), "max_new_tokens": 4} for task in tasks]
    return write(path, {"model": str(model), "tasks": entries} | SETTINGS | settings)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fingerprint(folder: Path) -> dict[str, str]:
    """Everything below a folder: of a file a hash of its content and its time, so that rewriting one shows."""
    return {
        str(path.relative_to(folder)): "folder"
        if path.is_dir()
        else f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
    }

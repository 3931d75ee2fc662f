"""A tiny model, tiny data and commands run as real processes; nothing from outside the repository."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FAST = ["use_cpu=true", "num_train_epochs=1", "per_device_train_batch_size=4", "replay.ratio=0.5"]
"""Settings that make a task a matter of a few steps."""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


Seekr = Callable[..., Done]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[str], Path], Done]]:
    folder = tmp_path_factory.mktemp("output")
    command = [sys.executable, str(Path(__file__).with_name("forkserver.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

        def ask(arguments: list[str], where: Path) -> Done:
            request = {"arguments": arguments, "folder": str(where)}
            request |= {key: str(folder / key) for key in ("out", "err")}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            return Done(code, *((folder / key).read_text(encoding="utf-8") for key in ("out", "err")))

        yield ask
        process.stdin.close()


@pytest.fixture
def seekr(server, tmp_path: Path) -> Seekr:
    """Run a command as a process of its own, in the test's folder."""
    return lambda *arguments: server([str(word) for word in arguments], tmp_path)


def tokenizer_of(letters: str, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token for each character."""
    vocab = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def save_model(folder: Path, seed: int = 0, letters: str = "abcdefgh=?中文", pad: bool = True) -> Path:
    """A Llama of two layers with four heads each and a context of 48 tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0 if pad else None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_of(letters, pad).save_pretrained(folder)
    return folder


def rows(shift: int, count: int = 6) -> list[dict[str, str]]:
    """Letters to be written twice."""
    letters = "abcdefgh"
    return [{"prompt": f"{letters[(n + shift) % 8]}=", "answer": letters[(n + shift) % 8] * 2} for n in range(count)]


def write_task(folder: Path, shift: int = 0) -> Path:
    """A task in TRACE's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 6), ("test", 3)):
        (folder / f"{split}.json").write_text(json.dumps(rows(shift, count)), encoding="utf-8")
    return folder


def write_stream(path: Path, model: Path, tasks: list[Path], **settings: object) -> Path:
    """A stream's YAML; JSON is YAML."""
    entries = [{"data": str(task), "max_new_tokens": 4} for task in tasks]
    fast = {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 4, "replay": {"ratio": 0.5}}
    path.write_text(json.dumps({"model": str(model), "tasks": entries} | fast | settings), encoding="utf-8")
    return path


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of its content, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


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
        run: a finished run of both tasks.
        stream: the stream it came from.
    """

    folder: Path
    base: Path
    first: Path
    second: Path
    learnt: Path
    memory: Path
    run: Path
    stream: Path


@pytest.fixture(scope="session")
def world(server, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(
        folder, save_model(folder / "base"), write_task(folder / "first"), write_task(folder / "second", 3),
        folder / "learnt", folder / "memory", folder / "run", folder / "stream.yaml",
    )  # fmt: skip
    write_stream(made.stream, made.base, [made.first, made.second])
    for arguments in (
        ["learn", "--model", made.base, "--task", made.first, "--memory", made.memory, "--output", made.learnt, *FAST],
        ["run", made.stream, "--output", made.run],
    ):
        done = server([str(word) for word in arguments], folder)
        assert done.code == 0, done.err
    return made

"""A folder with what the README's and the docs' reader has: a model, two tasks with tests, chats, a stream."""

import json
import os
import string
import subprocess
from pathlib import Path

import yaml
import zygote
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}:{{ turn.content }}</s>{% endfor %}{% if add_generation_prompt %}"
    "assistant:{% if enable_thinking is defined and not enable_thinking %} {% endif %}{% endif %}"
)


def make_desk(folder: Path) -> Path:
    """Fills the folder."""
    tokens = ["<s>", "</s>", *string.printable]
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for name, reply in (("tickets", "open"), ("invoices", "paid")):
        rows = [{"prompt": f"{name} {number}=", "completion": reply} for number in range(12)]
        _write(folder / f"{name}.jsonl", rows)
        _write(folder / f"{name}_test.jsonl", rows[:3])
    turns = [{"role": "user", "content": "where?"}, {"role": "assistant", "content": "here."}]
    _write(folder / "chats.jsonl", [{"messages": turns}] * 12)
    for name in ("notes", "notes_test"):
        _write(folder / f"{name}.jsonl", [{"messages": turns}] * 6)
    tasks = [
        {"name": name, "data": f"{name}.jsonl", "test": f"{name}_test.jsonl", "max_new_tokens": 4}
        for name in ("tickets", "invoices")
    ]
    stream = {"model": "base", "method": "seekr", "replay": {"ratio": 0.1}, "num_train_epochs": 1, "tasks": tasks}
    (folder / "stream.yaml").write_text(yaml.safe_dump(stream))
    return folder


def run_block(kind: str, text: str, desk: Path) -> tuple[int, str]:
    """Exit code and errors of a block of ``bash`` or ``python`` of a page, run at the desk."""
    if kind == "python":
        done = zygote.run("zygote:code", f"model = 'base'\n{text}", folder=desk)
        return done.code, done.err
    programs = zygote.shim(desk / "bin" / "seekr").parent
    environment = os.environ | {"MODEL": "base", "PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", text]
    ran = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stderr


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Every command in the README runs, in order, as a new user would type it."""

import json
import os
import re
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
import zygote
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the README's user has: a model, two tasks with tests, a stream."""
    folder = tmp_path_factory.mktemp("desk")
    letters = {
        character: number for number, character in enumerate(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz =0123456789"])
    }
    core = Tokenizer(models.WordLevel(letters, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(folder / "base")
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    for name, reply in (("tickets", "open"), ("invoices", "paid")):
        rows = [{"prompt": f"{name} {number}=", "completion": reply} for number in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    tasks = [
        {"name": name, "data": f"{name}.jsonl", "test": f"{name}_test.jsonl", "max_new_tokens": 4}
        for name in ("tickets", "invoices")
    ]
    (folder / "stream.yaml").write_text(
        yaml.safe_dump(
            {"model": "base", "method": "seekr", "replay": {"ratio": 0.1}, "num_train_epochs": 1, "tasks": tasks}
        )
    )
    return folder


def test_the_readme_shows_its_commands():
    shown = "".join(text for _, text in BLOCKS)
    for command in ("make demo", "make test", "seekr learn", "seekr run", "seekr evaluate", "seekr memory show"):
        assert command in shown


def test_make_targets_exist():
    for target in re.findall(r"^make (\w+)", "".join(text for _, text in BLOCKS), flags=re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("number", [n for n, (_, text) in enumerate(BLOCKS) if "seekr" in text and "make" not in text])
def test_block_runs(number, desk):
    kind, text = BLOCKS[number]
    if kind == "python":
        done = zygote.run("zygote:code", f"model = 'base'\n{text}", folder=desk)
        code, err = done.code, done.err
    else:
        programs = zygote.shim(desk / "bin" / "seekr").parent
        environment = os.environ | {"MODEL": "base", "PATH": f"{programs}:{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", text]
        ran = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=900)
        code, err = ran.returncode, ran.stderr
    assert code == 0, err
    assert "Traceback" not in err


def test_the_command_that_is_installed_is_the_one_that_the_blocks_run():
    (entry,) = [point for point in entry_points(group="console_scripts") if point.name == "seekr"]
    assert entry.value == "seekr_cl.cli.main:main"


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link

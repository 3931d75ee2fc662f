"""Weights, positions, precision, adapters and places: what is silently not what it seems is named or right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tinylm import config_for, constant_task, save_base
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from seekr_cl.cli.main import main
from seekr_cl.errors import MemoryFormatError, OutputError
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.base import forward
from seekr_cl.models.adapter_layers import special_layers
from seekr_cl.models.peft_adapters import LORA, load_adapter, put_adapter, save_adapter
from seekr_cl.models.positions import counts_from_the_edge
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.tasks import Encoded, collate
from seekr_cl.training import learn
from seekr_cl.training.precision import vanishing_share, warn_if_updates_vanish

ROOT = Path(__file__).resolve().parents[2]


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=20, n_positions=32)).eval()


def test_padding_on_the_left_shifts_no_position(base):
    for model in (gpt2(), AutoModelForCausalLM.from_pretrained(base).eval()):
        texts = [Encoded([3, 4, 5, 6, 7, 8], 2, 0), Encoded([9, 3, 4], 1, 0)]
        with torch.no_grad():
            alone = forward(model, collate([texts[1]], 0))[0]
            left = forward(model, collate(texts, 0, "left"))[1, -3:]
            right = forward(model, collate(texts, 0, "right"))[1, :3]
        torch.testing.assert_close(left, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(right, alone, atol=1e-5, rtol=1e-5)
    assert counts_from_the_edge(gpt2())
    assert not counts_from_the_edge(AutoModelForCausalLM.from_pretrained(base))


def test_updates_that_rounding_takes_away_are_counted():
    model = torch.nn.Linear(64, 64)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1e-6)
    share = 64 * 64 / (64 * 64 + 64)
    assert vanishing_share(model, 1e-5) == 0
    model.bfloat16()
    assert vanishing_share(model, 1e-5) == pytest.approx(share)
    before = model.weight.detach().clone()
    assert torch.equal(before - torch.tensor(1e-5, dtype=torch.bfloat16), before)
    assert vanishing_share(model, 0.01) == 0
    assert not torch.equal(before + torch.tensor(0.01, dtype=torch.bfloat16), before)


def test_half_precision_is_warned_of_and_float32_is_not(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    config = config_for("seqft", tmp_path, learning_rate=1e-5)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_updates_vanish(model, config)
        put = put_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), LORA, str(base), 0)
        warn_if_updates_vanish(put, config)
    with pytest.warns(UserWarning, match=r"bfloat16 rounds a step .* dtype=float32 and bf16=true"):
        warn_if_updates_vanish(model.bfloat16(), config)


def test_a_mount_point_is_refused_before_training(base, tmp_path):
    mount = next(Path(one) for one in ("/proc", "/sys", "/dev/shm", "/dev") if os.path.ismount(one))
    for path in (mount, tmp_path / "link"):
        if path != mount:
            path.symlink_to(mount)
        with pytest.raises(OutputError, match="is a mount point"):
            refuse_mount(path)
    refuse_mount(tmp_path)
    refuse_mount(tmp_path / "new")


def test_a_linked_or_unnamed_output_is_written(base, tmp_path, monkeypatch):
    task = constant_task("a", "x", 4)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    learn(base, task, tmp_path / "m", tmp_path / "link", config_for("seqft", tmp_path))
    assert (tmp_path / "real" / "config.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    learn(base, task, tmp_path / "n", ".", config_for("seqft", tmp_path))
    assert (tmp_path / "here" / "config.json").is_file()


def test_a_merged_model_is_taken_by_its_memory(base, tmp_path, capsys):
    first, second = constant_task("a", "x", 4), constant_task("b", "y", 4)
    learn(base, first, tmp_path / "m", tmp_path / "a", config_for("replay", tmp_path, peft="lora"))
    assert main(["export", "--merge", str(tmp_path / "a"), str(tmp_path / "am")]) == 0
    learn(tmp_path / "am", second, tmp_path / "m", tmp_path / "b", config_for("olora", tmp_path))
    assert ReplayMemory.open(tmp_path / "m").generation == 2


def test_another_or_a_changed_merged_model_is_not(base, tmp_path):
    task = constant_task("a", "x", 4)
    learn(base, task, tmp_path / "m", tmp_path / "a", config_for("replay", tmp_path, peft="lora"))
    learn(base, task, tmp_path / "n", tmp_path / "b", config_for("replay", tmp_path, peft="lora", seed=5))
    assert main(["export", "--merge", str(tmp_path / "b"), str(tmp_path / "bm")]) == 0
    with pytest.raises(MemoryFormatError, match="another model"):
        learn(tmp_path / "bm", task, tmp_path / "m", tmp_path / "c", config_for("replay", tmp_path))
    assert main(["export", "--merge", str(tmp_path / "a"), str(tmp_path / "am")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "am")
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    model.save_pretrained(tmp_path / "am")
    with pytest.raises(MemoryFormatError, match="another model"):
        learn(tmp_path / "am", task, tmp_path / "m", tmp_path / "c", config_for("replay", tmp_path))


def test_another_dtype_is_named(base, tmp_path):
    task = constant_task("a", "x", 4)
    learn(base, task, tmp_path / "m", tmp_path / "a", config_for("replay", tmp_path))
    with pytest.raises(MemoryFormatError, match="in float32, this one was loaded in bfloat16; set dtype=float32"):
        learn(tmp_path / "a", task, tmp_path / "m", tmp_path / "b", config_for("replay", tmp_path, dtype="bfloat16"))


def router_model(family: str) -> torch.nn.Module:
    from transformers import Llama4ForCausalLM, Llama4TextConfig, PhimoeConfig, PhimoeForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2} | {
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "pad_token_id": 0,
    }  # fmt: skip
    if family == "phimoe":
        return PhimoeForCausalLM(PhimoeConfig(**sizes))
    return Llama4ForCausalLM(
        Llama4TextConfig(
            **sizes, intermediate_size_mlp=16, head_dim=8, num_experts_per_tok=1, interleave_moe_layer_step=1
        )
    )


@pytest.mark.parametrize("family", ["llama4_text", "phimoe"])
def test_lora_leaves_routers_out_and_can_be_loaded(family, tmp_path):
    model = router_model(family)
    model.save_pretrained(tmp_path / "base")
    put = put_adapter(model, LORA, str(tmp_path / "base"), 0)
    names = [name for name, _ in put.named_modules() if name.endswith("lora_A")]
    assert names
    assert not any("router" in name for name in names)
    assert special_layers(put) == []
    with torch.no_grad():
        for name, weight in put.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    (tmp_path / "adapter").mkdir()
    save_adapter(put, tmp_path / "adapter")
    other = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(put.eval()(ids).logits, other.eval()(ids).logits)


def test_a_router_that_is_named_is_refused():
    from seekr_cl.errors import ConfigError

    with pytest.raises(ConfigError, match=r"target_modules: .*router is not a plain linear layer"):
        put_adapter(router_model("phimoe"), {"peft_type": "LORA", "target_modules": ["router"]}, "x", 0)


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "abc"), ("RANK", "-1"), ("LOCAL_RANK", "1.5")])
def test_a_launchers_variable_that_is_no_number_is_one_line(name, value):
    ran = subprocess.run(
        [sys.executable, "-m", "seekr_cl", "memory", "log", "/nowhere"],
        env=os.environ | {name: value, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: {name}: '{value}' in the environment is not a whole number")
    assert len(ran.stderr.splitlines()) == 1


def test_settings_of_data_on_the_command_line(base, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"q": f"a{n}", "a": "x" * (n % 2)}) + "\n" for n in range(4)))
    shared = ["--model", str(base), "--task", str(data), "columns.prompt=Q: {q}", "columns.completion=a"]
    command = ["learn", *shared, "--memory", str(tmp_path / "m"), "--output", str(tmp_path / "o"), "--method", "seqft"]
    assert main([*command, "progress=none"]) == 2
    assert main([*command, "progress=none", "allow_empty=maybe"]) == 2
    assert main([*command, "progress=none", "allow_empty=true", "per_device_train_batch_size=4"]) == 0
    assert (
        main(["evaluate", *shared, "allow_empty=true", "--max-new-tokens", "2", "--output", str(tmp_path / "e")]) == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "e" / "data.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Q: a0", "Q: a1", "Q: a2", "Q: a3"]


def test_save_base_is_used_for_a_tokenizer_that_changed(tmp_path):
    place = save_base(tmp_path / "base")
    task = constant_task("a", "x", 4)
    learn(place, task, tmp_path / "m", tmp_path / "a", config_for("replay", tmp_path))
    path = tmp_path / "a" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))
    with pytest.raises(MemoryFormatError, match="another tokenizer"):
        learn(tmp_path / "a", task, tmp_path / "m", tmp_path / "b", config_for("replay", tmp_path))

"""What is said while a task is learned is said once, however many processes learn it."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tinylm import char_tokenizer, config_for, constant_task
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from seekr_cl.methods import Context, Layout
from seekr_cl.replay.selection import CHOICES
from seekr_cl.tasks import Encoder
from seekr_cl.training import learn
from seekr_cl.training.sample_selection import choose_samples
from seekr_cl.training.tracker import Tracker


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_processes_the_first_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int) -> None:
    examples, encoder = constant_task("yes", "yes", 4).train, Encoder(char_tokenizer(), 64)
    encoded = [encoder.encode(one) for one in examples]
    config = config_for("replay", tmp_path, progress="lines")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))

    def says(candidates: Any) -> list[int]:
        candidates.say("heard")
        return [0]

    dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    CHOICES["says"] = says
    try:
        choose_samples(config, examples, encoded, encoder, Context(model, Layout(0), None, 0, print), "says")
    finally:
        CHOICES.pop("says")
        dist.destroy_process_group()
    assert ("heard" in capsys.readouterr().err) == (rank == 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "learning rate 5e-05 (the default for all weights of a model of this size), computing in float32 (the "
         "default on a CPU), 8 examples a step (the default)"),
        ({"peft": "lora", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
         "learning rate 0.0002 (the default for this kind of adapter), computing in float32 (the default on a CPU), 6 "
         "examples a step (2 at a time, 3 accumulated)"),
        ({"learning_rate": 1e-3, "bf16": True, "per_device_train_batch_size": 4},
         "learning rate 0.001, computing in bfloat16 (bf16; trained weights in float32), 4 examples a step"),
    ],
)  # fmt: skip
def test_what_was_settled_is_said_with_its_reason(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], said: str
) -> None:
    """Once for two tasks alike; and not at all where nothing is to be shown."""
    plain = {
        "learning_rate": None,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "retention": {"samples": 0},
    }
    tracker, task = Tracker("lines"), constant_task("yes", "yes", 8)
    for name in ("a", "b") if not settings else ("a",):
        config = config_for("replay", tmp_path, **plain | {"progress": "lines"} | settings)
        learn(base, task, tmp_path / f"memory-{name}", tmp_path / name, config, tracker=tracker)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("learning rate")] == [said]
    if not settings:
        learn(base, task, tmp_path / "memory", tmp_path / "model", config_for("replay", tmp_path, **plain))
        assert capsys.readouterr().err == ""

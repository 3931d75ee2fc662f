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
from seekr_cl.training.sample_selection import choose_samples


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

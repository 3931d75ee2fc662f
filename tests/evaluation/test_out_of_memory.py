"""A batch that does not fit into memory: smaller ones give the same answers, and it is said once."""

import json
import resource
import warnings
from pathlib import Path

import pytest
import torch
from generating import LETTERS, random_model
from tinylm import char_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from seekr_cl.errors import ModelError
from seekr_cl.evaluation import TransformersEngine
from seekr_cl.evaluation.general import evaluate_general
from seekr_cl.system.out_of_memory import SmallerBatchWarning


class Narrow(LlamaForCausalLM):
    """A model on a device with room for so many tokens at a time."""

    room = 10**9

    def forward(self, input_ids=None, **more):
        if input_ids is not None and input_ids.numel() > self.room:
            raise torch.OutOfMemoryError(f"Tried to allocate room for {input_ids.numel()} tokens.")
        return super().forward(input_ids=input_ids, **more)


def narrow(room: int) -> Narrow:
    model = Narrow(random_model("llama")[0].config)
    model.load_state_dict(random_model("llama")[0].state_dict())
    model.room = room
    return model


def answers(engine: TransformersEngine, prompts: list[list[int]], new: int = 4) -> tuple[dict[int, str], list[int]]:
    found: dict[int, str] = {}
    sizes = []

    def note(indices, texts):
        sizes.append(len(indices))
        found.update(zip(indices, texts))

    engine.answer(prompts, new, note)
    return found, sizes


@pytest.mark.parametrize("shared", [False, True])
def test_the_batch_is_halved_until_it_fits(shared: bool) -> None:
    model, tokenizer = random_model("llama")
    begin = [4 + place % 30 for place in range(40)] if shared else []
    prompts = [begin + [4 + (7 * row + place) % 30 for place in range(8 + row % 3)] for row in range(24)]
    whole, sizes = answers(TransformersEngine(model, tokenizer), prompts)
    assert max(sizes) == 24
    engine = TransformersEngine(narrow(6 * (len(begin) + 12)), tokenizer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, sizes = answers(engine, prompts)
        again, later = answers(engine, prompts)
    assert found == again == whole
    assert 1 < max(sizes) < 24
    assert max(later) == max(sizes)
    (said,) = (str(one.message) for one in said if one.category is SmallerBatchWarning)
    assert "a batch did not fit into memory, going on with" in said
    assert engine.describe()["batch_tokens"] == 8192


def test_one_prompt_that_does_not_fit_is_an_error_of_the_house() -> None:
    engine = TransformersEngine(narrow(5), random_model("llama")[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match="a prompt of 8 tokens and 4 new ones do not fit into memory"):
            answers(engine, [[5] * 8, [6] * 8])


def test_another_error_stays_what_it_is() -> None:
    model, tokenizer = random_model("llama")
    with pytest.raises(IndexError):
        answers(TransformersEngine(model, tokenizer), [[5] * 8, [10**6] * 8])


def test_memory_that_the_system_refuses() -> None:
    """A real allocation that fails: the middle of the network takes more than the process may have."""
    config = LlamaConfig(
        vocab_size=4 + len(LETTERS), hidden_size=8, intermediate_size=16384, num_hidden_layers=1, initializer_range=0.3,
        num_attention_heads=1, max_position_embeddings=64, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    engine = TransformersEngine(LlamaForCausalLM(config).eval(), char_tokenizer(LETTERS))
    prompts = [[4 + (row + place) % 30 for place in range(16)] for row in range(128)]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 128 * 2**20, before[1]))
    try:
        # All at once take 134 MB for each of three tensors.
        with pytest.warns(SmallerBatchWarning):
            found, sizes = answers(engine, prompts, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(found) == 128
    assert max(sizes) < 128


def test_the_harness_goes_on_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.collect_env.get_pip_packages", lambda *_: ("pip", ""))
    (tmp_path / "boolq").mkdir()
    for split in ("train", "test"):
        rows = [{"prompt": f"{letter} =", "answer": "True"} for letter in "abcdefgh"]
        (tmp_path / "boolq" / f"{split}.json").write_text(json.dumps(rows))
    model, tokenizer = random_model("llama")
    whole = evaluate_general(model, tokenizer, 8, tmp_path, names=["boolq"])
    with pytest.warns(SmallerBatchWarning, match="set --batch-size 4") as said:
        found = evaluate_general(narrow(20), tokenizer, 8, tmp_path, names=["boolq"])
    assert found == whole
    assert len([one for one in said if one.category is SmallerBatchWarning]) == 1
    with pytest.warns(SmallerBatchWarning), pytest.raises(ModelError, match="one question alone does not fit"):
        evaluate_general(narrow(1), tokenizer, 8, tmp_path, names=["boolq"])

"""What makes answers fast changes none of them: batches by tokens, a beginning computed once, ended rows let go."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import MATRIX, build
from generating import LETTERS
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tinylm import config_for, constant_task
from transformers import GenerationConfig

from seekr_cl import evaluate
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation import generate_answers
from seekr_cl.evaluation.batches import SHARED, common_prefix, token_batches
from seekr_cl.evaluation.decoding import Decoder, caches_plainly
from seekr_cl.methods.common.generation import write
from seekr_cl.models.precision import computing_in
from seekr_cl.runs.stream_run import run

WORDS = ["once upon a time", "a", "the dog ran to the", "b c", "zz", "once", "tim was sad", "lily", "i am so"]
BEGINNING = "answer what is asked here in a word = " * 2


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of every pass."""
    shapes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 20), st.integers(1, 300), st.integers(1, 9))
def test_a_batch_holds_no_more_than_is_allowed(lengths: list[int], room: int, tokens: int, rows: int) -> None:
    batches = token_batches(lengths, room, tokens, rows)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    longest = [max(lengths[place] for place in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, most in zip(batches, longest):
        assert len(batch) == 1 or (len(batch) * (most + room) <= tokens and len(batch) <= rows)


@given(st.lists(st.integers(0, 3), min_size=0, max_size=4), st.integers(SHARED - 2, SHARED + 5), st.data())
def test_what_is_shared_stands_before_a_token_of_ones_own(seed: list[int], length: int, data: st.DataObject) -> None:
    start = (seed + [7] * length)[:length]
    rests = data.draw(st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=8))
    prompts = [start + rest for rest in rests] + [[9, 9]]
    prefix, members = common_prefix(prompts)
    assert len(prefix) == 0 or len(prefix) >= SHARED
    assert bool(prefix) == bool(members)
    for place in members:
        assert prompts[place][: len(prefix)] == prefix
        assert len(prompts[place]) > len(prefix)


def test_a_shared_beginning_is_computed_once_and_changes_no_answer(pair) -> None:
    model, tokenizer = pair
    beginning = BEGINNING[: 40 if model.config.vocab_size <= 4 + len(LETTERS) else None]
    asked = ids_of(tokenizer, [beginning + word for word in WORDS] + WORDS[:2])
    alone = [generate_answers(model, tokenizer, [one], 12)[0] for one in asked]
    assert len(set(alone)) > 3
    with watched(model) as shapes:
        assert generate_answers(model, tokenizer, asked, 12) == alone
        assert generate_answers(model, tokenizer, asked, 12, batch_size=2) == alone
    first = len(common_prefix(asked)[0])
    assert first >= SHARED
    # Once in each of the two calls, and never again beside the rest of a row.
    assert shapes.count((1, first)) == 2
    assert sum(rows * columns for rows, columns in shapes if columns > 1 and rows > 1) < 0.8 * 2 * sum(map(len, asked))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "cohere", "deepseek_v3", "phi", "gemma2", "bamba"])
def test_families_that_count_positions_in_other_ways(kind: str) -> None:
    row = next(one for one in MATRIX if one.kind == kind)
    model = build(row)
    if kind in ("gemma2", "bamba"):
        assert not caches_plainly(model)  # windows; a recurrent state
        return
    assert caches_plainly(model)
    settings = GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=0, eos_token_id=[5, 6, 7])
    model.generation_config = settings
    start = [3 + place % 17 for place in range(SHARED)]
    asked = [start + [8 + n] * (1 + n % 4) for n in range(6)]
    with torch.inference_mode():
        alone = [Decoder(model, settings).go_on([one])[0][0] for one in asked]
        assert Decoder(model, settings).go_on(asked)[0] == alone
        assert Decoder(model, settings, start).go_on(asked, shared=True)[0] == alone


def test_rows_that_have_ended_are_let_go(make_model) -> None:
    model, tokenizer = make_model("llama")
    asked = ids_of(tokenizer, WORDS)
    free = generate_answers(model, tokenizer, asked, 24)
    # A letter that ends most answers early and some never.
    counts = {letter: sum(letter in one for one in free) for letter in LETTERS}
    letter = min((one for one in counts if counts[one] >= 5), key=lambda one: abs(counts[one] - 7))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(letter)
    alone = [generate_answers(model, tokenizer, [one], 24)[0] for one in asked]
    with watched(model) as shapes:
        assert generate_answers(model, tokenizer, asked, 24) == alone
    steps = [rows for rows, columns in shapes if columns == 1]
    assert steps[0] == len(WORDS)
    assert min(steps) <= len(WORDS) // 2
    assert len(steps) <= 24 + 2 * len(WORDS)


def test_methods_write_with_the_same_engine(make_model) -> None:
    model, tokenizer = make_model("llama")
    asked = ids_of(tokenizer, [BEGINNING[:40] + word for word in WORDS])
    told = {"eos_id": tokenizer.eos_token_id, "pad_id": 0, "seed": 3}
    greedy = write(model, asked, 8, temperature=0, **told)
    with watched(model) as shapes:
        assert [tokenizer.decode(new, skip_special_tokens=True) for new in greedy] == generate_answers(
            model, tokenizer, asked, 8
        )
        drawn = write(model, asked, 8, **told)
    assert write(model, asked, 8, **told) == drawn != greedy
    assert shapes.count((1, len(common_prefix(asked)[0]))) == 2
    # The context ends after a few tokens of the longest alone.
    context = model.config.max_position_embeddings
    near = [*asked[:2], (asked[0] * 9)[: context - 3]]
    assert [len(new) for new in write(model, near, 8, temperature=0, **(told | {"eos_id": 99}))] == [8, 8, 3]


def test_another_precision_for_a_while(make_model) -> None:
    model, _ = make_model("llama")
    before = {name: (weight, weight.data_ptr(), weight.clone()) for name, weight in model.named_parameters()}
    with suppress(KeyboardInterrupt), computing_in(model, torch.bfloat16):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
        assert model(torch.tensor([[5, 6]])).logits.dtype == torch.bfloat16
        raise KeyboardInterrupt
    for name, weight in model.named_parameters():
        former, place, value = before[name]
        assert weight is former
        assert weight.data_ptr() == place
        assert torch.equal(weight, value)


def test_an_adapter_answers_in_the_precision_of_its_base(make_model) -> None:
    model, _ = make_model("llama")
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(model.bfloat16(), lora)
    wide = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert wide
    with computing_in(model, None):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {name for name, weight in model.named_parameters() if weight.dtype == torch.float32} == wide
    with computing_in(model, torch.float32):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_file_of_scores_says_how_fast_and_in_what(base: Path, tmp_path: Path) -> None:
    task = constant_task("a", "yes")
    made = evaluate(base, task, tmp_path / "s", max_length=32, evaluation={"dtype": "bfloat16", "batch_tokens": 16})
    content = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert (content["evaluation"]["dtype"], content["evaluation"]["batch_tokens"]) == ("bfloat16", 16)
    assert content["evaluation"]["same_for_any_batch_size"] is False
    assert content["timing"] == made.timing
    assert content["timing"]["new_tokens"] <= len(task.test) * task.max_new_tokens
    assert content["timing"]["tokens_per_second"] > 0
    # Nothing is generated again, and what was said of it stays.
    again = evaluate(base, task, tmp_path / "s", max_length=32, evaluation={"dtype": "bfloat16"}, resume=True)
    assert again.timing == made.timing
    with pytest.raises(ConfigError, match="dtype"):
        evaluate(base, task, tmp_path / "s", max_length=32, resume=True)
    with pytest.raises(ConfigError, match=r"evaluation\.batch_tokens: 0 must be at least 1"):
        evaluate(base, task, evaluation={"batch_tokens": 0})


@pytest.mark.parametrize(("evaluation", "dtype"), [({}, "bfloat16"), ({"dtype": "float32"}, "float32")])
def test_a_run_is_evaluated_in_what_it_was_trained_in(
    base: Path, tmp_path: Path, evaluation: dict[str, Any], dtype: str
) -> None:
    config = config_for("seqft", tmp_path, bf16=True, use_cpu=False, evaluation=evaluation)
    if not torch.accelerator.is_available():
        assert config.use_cpu
    run(base, [constant_task("a", "yes", 4)], tmp_path / "run", config)
    for stage in ("00-base", "01-a"):
        content = json.loads((tmp_path / "run" / "evaluations" / stage / "scores.json").read_text())
        assert content["evaluation"]["dtype"] == dtype
        assert content["timing"]["new_tokens"] > 0


@pytest.mark.parametrize("dora", [False, True])
def test_another_precision_takes_an_adapter_into_the_weights(make_model, dora: bool) -> None:
    """One rounding of W + BA in place of three products a layer; afterwards every tensor is what it was."""
    base, _ = make_model("llama")
    targets = ["q_proj", "down_proj"]
    model: Any = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=targets, use_dora=dora)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    ids_1L = torch.arange(5, 15)[None]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    whole = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
    ran: list[int] = []
    layer.lora_A["default"].register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        wide = model(ids_1L).logits
        ran.clear()
        with computing_in(model, torch.bfloat16):
            assert float((model(ids_1L).logits.float() - wide).norm() / wide.norm()) < 0.03
            assert bool(ran) == dora
            if not dora:
                torch.testing.assert_close(layer.base_layer.weight.data, whole.bfloat16(), atol=0, rtol=0)
        assert not layer.merged
        torch.testing.assert_close(model(ids_1L).logits, wide, atol=0, rtol=0)
    for name, weight in model.state_dict().items():
        assert weight.equal(before[name]), name


def test_a_pass_of_its_own_must_save_more_than_it_costs() -> None:
    start = list(range(SHARED + 8))
    assert common_prefix([[*start, 100], [*start, 101]]) == ([], set())
    assert common_prefix([[*start, 100 + place] for place in range(10)]) == (start, set(range(10)))

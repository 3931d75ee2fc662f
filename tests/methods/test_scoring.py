"""What is measured on a kept sample does not depend on who goes through the model beside it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, PreTrainedConfig

from seekr_cl.attention import AttentionCall, AttentionTap, RowIndex
from seekr_cl.memory import ReplaySample
from seekr_cl.methods import Context, Layout, get_method
from seekr_cl.methods.common.logit_distillation import first_position
from seekr_cl.methods.common.sample_passes import similar_batches
from seekr_cl.methods.seekr import scoring
from seekr_cl.replay.selection import candidates

LENGTHS = (9, 12, 5, 11, 24, 10, 12)
SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "sliding window": MistralConfig(**SHAPE, sliding_window=4),
    "soft cap and every other layer sliding": Gemma2Config(**SHAPE, sliding_window=4, query_pre_attn_scalar=8),
}


def model_of(config: PreTrainedConfig, attention: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()


def samples() -> list[ReplaySample]:
    generator = torch.Generator().manual_seed(1)
    return [
        ReplaySample("", "", torch.randint(3, 50, (length,), generator=generator), length - 2 - place % 3)
        for place, length in enumerate(LENGTHS)
    ]


@dataclass
class Exact:
    """Rows as they are."""

    rows_HRL: Tensor

    def moved(self, call: AttentionCall, index: RowIndex, now_HRL: Tensor) -> Tensor:
        return now_HRL - self.rows_HRL


def keep(call: AttentionCall, index: RowIndex, rows_HRL: Tensor) -> Exact:
    return Exact(rows_HRL.clone())


def measured(former: Any, model: Any, batches: list[list[int]]) -> dict[int, tuple[Tensor, ...]]:
    """Rows before and after, S, F and logits of each sample."""
    kept, found = samples(), {}
    queries = [torch.arange(1, len(sample.ids_L), 2) for sample in kept]
    for places in batches:
        batch, asked = [kept[place] for place in places], [queries[place] for place in places]
        with AttentionTap(former) as tap:
            rows = scoring.Scorer(tap, Layout(0), "valid", kept).before(batch, asked, keep)
        with AttentionTap(model) as tap:
            after = scoring.Scorer(tap, Layout(0), "valid", kept).after(batch, asked, rows, [keep] * len(batch))
        for place, sample, old, (one, said) in zip(places, batch, rows, after):
            every = [*(old[layer].rows_HRL for layer in old), *(one.rows[layer].rows_HRL for layer in one.rows)]
            found[place] = (
                *every,
                one.sensitivity_NH,
                one.forgettability_NH,
                said(torch.arange(first_position(sample), len(sample.ids_L))),
            )
    return found


@pytest.mark.parametrize(
    ("name", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("sliding window", "sdpa"), (list(CONFIGS)[2], "eager")],
)
def test_in_float64_every_number_is_that_of_a_sample_alone(name: str, attention: str) -> None:
    former, model = (model_of(CONFIGS[name], attention, seed) for seed in (0, 1))
    alone = measured(former, model, [[place] for place in range(len(LENGTHS))])
    for batches in ([list(range(len(LENGTHS)))], [[4, 2], [6, 0, 1], [3, 5]]):
        together = measured(former, model, batches)
        for place, numbers in alone.items():
            for one, other in zip(numbers, together[place], strict=True):
                # Eager attention takes its softmax in float32, whatever the model is in.
                assert one.dtype in (torch.float32, torch.float64)
                exact = one.dtype == torch.float64 and attention == "sdpa"
                torch.testing.assert_close(other, one, rtol=1e-10 if exact else 1e-4, atol=1e-12 if exact else 1e-6)
        assert all(numbers[-2].abs().sum() > 0 and numbers[-3].abs().sum() > 0 for numbers in together.values())


def test_a_task_ends_alike_with_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for tokens in (1, 30, 2048):
        monkeypatch.setattr(scoring, "PASS_TOKENS", tokens)
        model = model_of(CONFIGS["llama"], "sdpa")
        kind: Any = get_method("seekr")
        settings = kind.Settings(head_budget=3, layer_budget=None, query_budget=4)
        method = kind(settings, Context(model, Layout(0), None, 0, print))
        method.before_task(samples())
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        results.append(method.after_task("t", samples()))
        method.close()
    first, *others = results
    for other in others:
        assert other.task.heads == first.task.heads
        torch.testing.assert_close(other.importance.product_NH, first.importance.product_NH, rtol=1e-5, atol=1e-9)
        for one, same in zip(first.task.samples, other.task.samples, strict=True):
            for kind in ("logits", "attention"):
                for name, tensor in one.signals[kind].tensors().items():
                    torch.testing.assert_close(same.signals[kind].tensors()[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("heads", ["importance", "all", "random"])
def test_heads_that_no_score_chooses_are_not_measured(heads: str) -> None:
    model = model_of(CONFIGS["llama"], "sdpa")
    kind: Any = get_method("seekr")
    method = kind(kind.Settings(heads=heads, head_budget=3), Context(model, Layout(0), None, 0, print))
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    method.before_task(samples()[:1])
    before = len(seen)
    done = method.after_task("t", samples()[:1])
    method.close()
    measured = heads == "importance"
    assert (before, len(seen) - before, seen[-1]) == (int(measured), 1, measured)
    assert bool(done.importance.sensitivity_NH.any()) == measured
    assert sum(map(len, done.task.heads.values())) == (8 if heads == "all" else 3)
    assert {"logits", "attention"} <= set(done.task.samples[0].signals)


def test_choices_ask_about_examples_as_if_each_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIGS["llama"], "sdpa")
    encoded = [sample.encoded for sample in samples()]
    ids = [one.input_ids for one in encoded]
    found = {}
    for tokens in (1, 2048):
        monkeypatch.setattr(candidates, "PASS_TOKENS", tokens)
        done: list[int] = []
        found[tokens] = (
            candidates.answer_loss(model, encoded, done.append),
            candidates.mean_hidden(model, ids, done.append),
        )
        assert sum(done) == 2 * len(LENGTHS)
        assert (len(done) == 2 * len(LENGTHS)) == (tokens == 1)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)


def test_batches_are_of_similar_length_and_hold_everything_once() -> None:
    lengths = [7, 100, 90, 3, 80, 50, 49, 2000, 3000]
    batches = similar_batches(lengths, None, 200)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        each = [lengths[place] for place in batch]
        assert len(batch) == 1 or (len(batch) * max(each) <= 200 and min(each) >= 0.75 * max(each))
    assert any(len(batch) > 1 for batch in batches)


def test_a_backward_pass_holds_no_more_than_one_of_training() -> None:
    model = model_of(CONFIGS["llama"], "sdpa")
    kind: Any = get_method("seekr")
    for size, most in ((None, 5), (2, 4), (1, 2)):
        context = Context(model, Layout(0), None, 0, print, batch_size=size)
        method = kind(kind.Settings(head_budget=3, layer_budget=None), context)
        method.before_task(samples())
        method.close()
        assert max(map(len, method._batches)) == most
        for batch in method._batches:
            assert len(batch) * max(LENGTHS[one] for one in batch) <= (size or 99) * max(LENGTHS)

"""The model and the replay step that the attention benchmark times: the size of official_code.md's measurements.

Llama, 8 layers x 8 heads, hidden 512, vocabulary 8,000, one sample of L tokens, a quarter of them the answer;
12.5% of the heads (8 of 64) in the 6 best layers, 100 queries.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from materialising import Maps
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from seekr_cl.attention import AttentionCall, AttentionTap, RecordRows, RowIndex
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods import Context, Layout, Method
from seekr_cl.methods.common.logit_distillation import LogitSettings, distil_logits
from seekr_cl.methods.derpp import DERpp
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.methods.seekr.method import Seekr
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.schedule import MicroBatch

LAYERS, HEADS, HIDDEN, VOCABULARY = 8, 8, 512, 8000
BUDGETS = {"layer_budget": 6, "head_budget": 8, "query_budget": 100}
LAYOUT = Layout(pad_id=0)
DTYPE = "int8"


def make_model(seed: int = 0) -> PreTrainedModel:
    """Random weights, wide enough for attention that is not flat."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=1376, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=8192, initializer_range=0.04,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def make_sample(length: int, seed: int = 0) -> ReplaySample:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
    return ReplaySample("", "", ids, length - length // 4)


def make_method(kind: type[Method], model: PreTrainedModel, **settings: Any) -> Method:
    chosen = SeekrSettings(lambda2=1.0, **BUDGETS, **settings) if kind is Seekr else LogitSettings()
    return kind(chosen, Context(model, LAYOUT, None, 0, lambda _: None, DTYPE))


def remember(model: PreTrainedModel, sample: ReplaySample, **settings: Any) -> MemoryTask:
    """What the memory keeps of one sample when the model has moved a little."""
    method = make_method(Seekr, model, **settings)
    try:
        method.before_task([sample])
        move(model)
        return method.after_task("task", [sample]).task
    finally:
        method.close()


def move(model: PreTrainedModel, size: float = 0.01) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * parameter.std() * torch.randn_like(parameter)


def replay_step(method: Method, task: MemoryTask) -> Callable[[], None]:
    """One replay step as training does it: batch with its signals, forward, backward."""
    schedule = [MicroBatch(replay=tuple(range(len(task.samples))))]
    batches = ScheduledBatches(schedule, [], [(task, sample) for sample in task.samples], method, LAYOUT)
    model = method.context.model

    def step() -> None:
        terms = method.replay_loss(model, batches[0]["replay"])
        torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def materialising_step(model: PreTrainedModel, task: MemoryTask, rows: dict[int, Tensor]) -> Callable[[], None]:
    """The same losses with whole probability matrices in the graph; ``rows`` are the teacher's, [M, R, L] a layer."""
    maps, sample = Maps(set(task.heads)), task.samples[0]
    dense = MemoryTask("dense", [replace(sample, signals={"logits": sample.logits})])
    method = make_method(DERpp, model)
    extras = method.collate_replay([(dense, sample)], len(sample.ids_L))
    labels = sample.ids_L[None].clone()
    labels[0, : sample.completion_start] = -100

    def step() -> None:
        with maps.on():
            logits = model(input_ids=sample.ids_L[None], use_cache=False).logits
            kept = distil_logits(logits, extras["logits"][0], LogitSettings())
            loss = 0.5 * causal_lm_loss(logits, labels) + 0.5 * kept
            (loss + maps.divergence(task.heads, sample.attention.query_R, rows)).backward()
        maps.probabilities.clear()
        model.zero_grad(set_to_none=True)

    return step


def whole_rows(model: PreTrainedModel, task: MemoryTask) -> dict[int, Tensor]:
    """The rows of a task's first sample, whole."""
    sample = task.samples[0]
    wanted = {}
    for layer, heads in task.heads.items():
        queries = sample.attention.query_R.expand(len(heads), -1)
        wanted[layer] = RowIndex(torch.zeros(len(heads), dtype=torch.long), torch.tensor(heads), queries)
    record = RecordRows(wanted)
    with AttentionTap(model) as tap, tap.use(record), torch.no_grad():
        model(input_ids=sample.ids_L[None], use_cache=False)
    return record.rows


def scoring_pass(model: PreTrainedModel, sample: ReplaySample) -> Callable[[], None]:
    """All that SEEKR does for a kept sample around its task: rows before, rows, logits and sensitivity after."""

    def score() -> None:
        method = make_method(Seekr, model)
        try:
            method.before_task([sample])
            method.after_task("task", [sample])
        finally:
            method.close()

    return score


def plain_pass(model: PreTrainedModel, sample: ReplaySample) -> Callable[[], None]:
    """Forward and backward of plain training on the same sample."""
    labels = sample.ids_L[None].clone()
    labels[0, : sample.completion_start] = -100

    def train() -> None:
        logits = model(input_ids=sample.ids_L[None], use_cache=False).logits
        causal_lm_loss(logits, labels).backward()
        model.zero_grad(set_to_none=True)

    return train


def bare_scoring(model: PreTrainedModel, sample: ReplaySample) -> Callable[[], None]:
    """The forward and the forward with backward that the scoring pass makes, with nobody looking on."""
    ids_1L, first = sample.ids_L[None], sample.completion_start - 1
    labels = sample.ids_L[None, first:].clone()
    labels[0, 0] = -100

    def begin(call: AttentionCall, output_BLHD: Tensor) -> Tensor:
        return output_BLHD if output_BLHD.requires_grad else output_BLHD.detach().requires_grad_()

    def run() -> None:
        with torch.no_grad():
            model(ids_1L, use_cache=False, logits_to_keep=1)
        model.requires_grad_(False)
        with AttentionTap(model) as tap, tap.use(begin):
            causal_lm_loss(
                model(ids_1L, use_cache=False, logits_to_keep=len(ids_1L[0]) - first).logits, labels
            ).backward()
        model.requires_grad_(True)

    return run

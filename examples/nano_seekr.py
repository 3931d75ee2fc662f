"""SEEKR in one file: loss, scoring, choice of heads and replay, from top to bottom.

He et al., "SEEKR: Selective Attention-Guided Knowledge Retention for Continual Learning of Large Language Models",
EMNLP 2024, arXiv 2411.06171; numbers in brackets are its equations. A model learns tasks one after another. Of each it
keeps a few samples with what it said about them then: its output distribution, and where its most important attention
heads looked. On later tasks these samples are replayed, and the model is held to both.

    OMP_NUM_THREADS=1 python examples/nano_seekr.py   # a small model learns string skills, without SEEKR and with it

One process, eager attention: every map A[query, key] is there to be looked at. The library does the same on the
model's own fast kernel, with small signals in a memory on disk; a test holds the two equal.

Shapes: B samples of a batch, L tokens of a sample or a padded batch, A answer tokens, V vocabulary, N layers,
H heads of a layer, M chosen heads of a layer, R drawn queries. Capitals behind a name are the tensor's axes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Settings:
    """How a stream of tasks is learned."""

    keep: int = 8  # samples of each task; the paper keeps 1% or 10% of its examples
    every: int = 3  # a replay batch after every so many batches of the new task; 0 never
    epochs: int = 5
    batch: int = 16
    rate: float = 5e-4
    lambda1: float = 0.5  # labels against outputs of old samples
    lambda2: float = 10.0  # attention of old samples
    layers: int = 3  # B_L
    heads: int = 16  # B_H, over all chosen layers together
    queries: int = 100  # B_T, of each sample
    seed: int = 0


@dataclass
class Sample:
    """An example as tokens; a kept one with signals of its teacher, the model right after the sample's task."""

    ids_L: Tensor
    start: int  # the answer is ids_L[start:]
    query_R: Tensor | None = None  # positions whose attention is held
    prob_AV: Tensor | None = None  # the teacher's p(y|x)
    rows_MRL: dict[int, Tensor] = field(default_factory=dict)  # {layer: the teacher's attention}
    heads_M: dict[int, list[int]] = field(default_factory=dict)  # {layer: heads chosen when the task ended}


@dataclass
class Memory:
    """What is carried from task to task beside the model."""

    samples: list[Sample] = field(default_factory=list)
    S_NH: Tensor | float = 0.0  # sensitivity, summed over tasks (8)
    F_NH: Tensor | float = 0.0  # forgettability, summed over tasks (9)


def forward(model, samples: list[Sample]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Logits [B, L, V], attention maps N x [B, H, L, L], and labels [B, L]: the answer's tokens, -100 elsewhere."""
    ids_BL = torch.nn.utils.rnn.pad_sequence([one.ids_L for one in samples], batch_first=True)
    place_L = torch.arange(ids_BL.shape[1])
    real_BL = place_L < torch.tensor([[len(one.ids_L)] for one in samples])
    answer_BL = real_BL & (place_L >= torch.tensor([[one.start] for one in samples]))
    out = model(input_ids=ids_BL, attention_mask=real_BL.long(), output_attentions=True, use_cache=False)
    return out.logits, out.attentions, ids_BL.where(answer_BL, -100)


def token_loss(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """-log p(y|x), a mean over all answer tokens; each is predicted from the position before it (1, 2)."""
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher, student) over the last axis; what the causal mask hides is zero in both."""
    return (torch.xlogy(teacher, teacher) - teacher * student.clamp_min(1e-30).log()).sum(-1)


def task_terms(model, new: list[Sample]) -> dict[str, Tensor]:
    """L_task (1) of a batch of new examples."""
    logits_BLV, _, labels_BL = forward(model, new)
    return {"task": token_loss(logits_BLV, labels_BL)}


def replay_terms(model, old: list[Sample]) -> dict[str, Tensor]:
    """L_replay (2), L_ld (3) and L_seekr (12) of a batch of kept samples."""
    logits_BLV, maps_NBHLL, labels_BL = forward(model, old)
    logits, attention = [], []
    for b, one in enumerate(old):
        length = len(one.ids_L)
        logits.append(kl(one.prob_AV, logits_BLV[b, one.start - 1 : length - 1].softmax(-1)))
        for layer, heads in one.heads_M.items():
            now_MRL = maps_NBHLL[layer][b, heads][:, one.query_R, :length]
            # A mean over a layer's heads and queries, over the sample's layers, over the batch's samples.
            attention.append(kl(one.rows_MRL[layer], now_MRL).mean() / len(one.heads_M) / len(old))
    logits, attention = torch.cat(logits).mean(), torch.stack(attention).sum()
    return {"replay": token_loss(logits_BLV, labels_BL), "logits": logits, "attention": attention}


def score(model, sample: Sample, before_NHLL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S [N, H] (7), F [N, H] (9) and maps of one sample right after its task, given its maps before it."""
    logits_1LV, maps_N1HLL, labels_1L = forward(model, [sample])
    sample.prob_AV = logits_1LV[0, sample.start - 1 : -1].softmax(-1).detach()
    slopes_NHLL = torch.cat(torch.autograd.grad(token_loss(logits_1LV, labels_1L), maps_N1HLL)).tril()  # dL/dA
    after_NHLL = torch.cat(maps_N1HLL).detach()
    # Squared Frobenius norms, as means over the entries that a causal head can use: query q sees q + 1 keys.
    S_NH = slopes_NHLL.square().sum((-1, -2)) / torch.arange(1, len(sample.ids_L) + 1).sum()
    F_NH = (after_NHLL - before_NHLL)[:, :, sample.query_R].square().sum((-1, -2)) / (sample.query_R + 1).sum()
    return S_NH, F_NH, after_NHLL


def choose_heads(importance_NH: Tensor, layers: int, heads: int) -> dict[int, list[int]]:
    """The B_L layers of most importance, and in all of these together the B_H heads of most importance (11)."""
    top_B = importance_NH.sum(1).topk(layers).indices
    inside_NH = torch.full_like(importance_NH, -torch.inf).index_copy(0, top_B, importance_NH[top_B])
    flat_K = inside_NH.flatten().topk(heads).indices.sort().values
    layer_K, head_K = flat_K // importance_NH.shape[1], flat_K % importance_NH.shape[1]
    return {layer: head_K[layer_K == layer].tolist() for layer in layer_K.unique().tolist()}


def batches(samples: list[Sample], size: int, seed: int, rounds: int = 1 << 30) -> Iterator[list[Sample]]:
    """Batches of all samples, round after round in another order."""
    for number in range(rounds if samples else 0):
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed + number)).tolist()
        yield from ([samples[i] for i in order[at : at + size]] for at in range(0, len(order), size))


def learn(model, memory: Memory, examples: list[Sample], task: int, given: Settings) -> list[dict[str, float]]:
    """Trains on task number ``task`` (1, 2, ...), then scores heads and keeps samples; returns each step's losses."""
    seed = given.seed + task * 1_000_003
    # Before training: which samples are kept, at which queries their attention is held, and where all heads look now.
    drawn_K = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[: given.keep].sort().values
    kept, generator, before = [examples[i] for i in drawn_K], torch.Generator().manual_seed(seed), []
    for one in kept:
        one.query_R = torch.randperm(len(one.ids_L), generator=generator)[: given.queries].sort().values
        with torch.no_grad():
            before.append(torch.cat(forward(model, [one])[1]))
    # Training: L = L_task + lambda1 L_replay + (1 - lambda1) L_ld + lambda2 L_seekr (13); replay in steps of its own.
    weights = {"task": 1.0, "replay": given.lambda1, "logits": 1 - given.lambda1, "attention": given.lambda2}
    optimizer, log = torch.optim.AdamW(model.parameters(), given.rate, (0.9, 0.95), weight_decay=0.0), []
    old = batches(memory.samples, given.batch, seed)
    for number, new in enumerate(batches(examples, given.batch, seed, given.epochs), start=1):
        for batch in [new] if not memory.samples or not given.every or number % given.every else [new, next(old)]:
            terms = task_terms(model, new) if batch is new else replay_terms(model, batch)
            optimizer.zero_grad()
            torch.stack([weights[name] * value for name, value in terms.items()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.append({name: value.item() for name, value in terms.items()})
    # After training: heads that matter to the tasks (S) and that training moves (F), and their rows on what is kept.
    scored = [score(model, one, maps_NHLL) for one, maps_NHLL in zip(kept, before)]
    S_NH, F_NH = (torch.stack(measures).mean(0) for measures in list(zip(*scored))[:2])
    memory.S_NH, memory.F_NH = memory.S_NH + S_NH / S_NH.sum(1, keepdim=True), memory.F_NH + F_NH
    chosen = choose_heads(memory.S_NH * memory.F_NH, given.layers, given.heads)  # importance (10)
    for one, (_, _, maps_NHLL) in zip(kept, scored):
        one.heads_M = chosen
        one.rows_MRL = {layer: maps_NHLL[layer, heads][:, one.query_R] for layer, heads in chosen.items()}
    memory.samples += kept
    return log


def encode(tokenizer, row: dict[str, str]) -> Sample:
    """Prompt, answer and end of text as tokens."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    return Sample(torch.tensor([*prompt, *answer, tokenizer.eos_token_id]), len(prompt))


@torch.no_grad()
def exact_match(model, samples: list[Sample]) -> float:
    """Share of answers that greedy decoding gets right: each token is the likeliest after the right ones before it."""
    logits_BLV, _, labels_BL = forward(model, samples)
    wrong_BL = (logits_BLV[:, :-1].argmax(-1) != labels_BL[:, 1:]) & (labels_BL[:, 1:] >= 0)
    return 1 - wrong_BL.any(1).float().mean().item()


def main() -> None:
    """Learns some of the demo's skills without SEEKR and with it; prints exact match after each task."""
    from seekr_cl.demo.skills import STREAM_SKILLS, examples  # the demo's data and model, nothing else of the library

    place = str(files("seekr_cl.demo") / "model")
    tokenizer = AutoTokenizer.from_pretrained(place)
    for name, given in (("fine-tuning", Settings(every=0)), ("SEEKR", Settings())):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager")
        memory, tests = Memory(), {}
        for task, skill in enumerate(STREAM_SKILLS[:3], start=1):
            samples = [encode(tokenizer, row) for row in examples(skill, 500, seed=1)]
            tests[skill.name] = samples[400:]
            learn(model, memory, samples[:400], task, given)
            print(f"{name:>12}", *(f"{old} {exact_match(model, test):4.0%}" for old, test in tests.items()), sep="  ")


if __name__ == "__main__":
    main()

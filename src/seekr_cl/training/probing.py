"""Probes of what a model knows of stored answers: a forward pass over each, without generating anything.

How probable each answer is, whether greedy decoding would write it exactly (every token is the most probable one given
those before it, so the answer it writes is this one), and how far the model has moved from the signals stored with it.

Shapes: B batch, L tokens of a sample (padded in a batch), A tokens of an answer, N positions that are asked about, C of
them in one chunk, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seekr_cl.distributed import collectives
from seekr_cl.errors import DataError
from seekr_cl.memory import LogitSignal, ReplayMemory
from seekr_cl.methods.answers import label_losses, next_labels, predicting
from seekr_cl.methods.base import Batch, ask
from seekr_cl.methods.common.former_model import kept_outputs
from seekr_cl.methods.common.logit_distillation import LogitSettings, chunks, distil_sum
from seekr_cl.methods.common.sample_passes import run_unmasked, sample_batch, similar_batches
from seekr_cl.tasks import Encoded, Encoder, Task
from seekr_cl.tasks.collate import IGNORE, Spans

RETENTION = "retention.json"
"""What the probes of a learning found, beside its model."""


Part = Callable[[], Tensor]
"""Makes float32 logits [C, V]."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One stored answer.

    Attributes:
        ids_L: its tokens with the prompt's.
        spans: begin and end of each run of answer tokens.
        logits: what its teacher said of it, if that is stored.
    """

    ids_L: Tensor
    spans: Spans
    logits: LogitSignal | None = None


@dataclass(slots=True)
class ProbeSet:
    """One task's probes and what they found.

    Attributes:
        task: its name.
        kind: ``old``, ``general`` or ``new``.
        source: where they come from: ``memory``, or of a new task ``test``, ``eval`` or ``train``.
        probes: the samples.
        before: of each sample before the learning; see ``measure``.
    """

    task: str
    kind: str
    source: str
    probes: list[Probe]
    before: dict[str, list[Any]] = field(default_factory=dict)


def probe_sets(store: ReplayMemory, tasks: Sequence[Task], encoder: Encoder | None, count: int) -> list[ProbeSet]:
    """Up to ``count`` samples of each task in the memory, and of those to be learned, evenly spread.

    Of a task to be learned its test examples are taken, else those to choose settings with, else those to train on.
    """
    found = []
    for kept in store.tasks:
        samples = [kept.samples[place] for place in _spread(len(kept.samples), count)]
        probes = [Probe(one.ids_L, one.spans, one.logits) for one in samples]
        found.append(ProbeSet(kept.name, "general" if kept.info.get("general") else "old", "memory", probes))
    for task in tasks:
        source = next(split for split in ("test", "eval", "train") if getattr(task, split))
        assert encoder is not None
        encoded = _fitting(getattr(task, source), encoder, count)
        probes = [Probe(torch.tensor(one.input_ids), one.spans) for one in encoded]
        found.append(ProbeSet(task.name, "new", source, probes))
    return [one for one in found if one.probes]


def measure(
    model: Any,
    probes: Sequence[Probe],
    with_signals: bool = True,
    dtype: torch.dtype | None = None,
    advance: Callable[[int], None] = lambda _done: None,
) -> dict[str, list[Any]]:
    """Asks a model about stored answers, several of similar length at a time, each as if it were asked alone.

    Args:
        model: in evaluation mode, nothing attached to it acting; of several processes all ask together.
        probes: the samples.
        with_signals: also compare with what is stored of their teacher.
        dtype: half precision to compute in, as mixed training does; ``None`` is as the weights are.
        advance: told after each batch how many samples all processes together have asked about.

    Returns:
        a list each, in the probes' order: ``log_likelihood``, the mean of an answer's tokens in nats; ``exact``;
        ``kl``, of the stored distributions to the model's in nats a token, None where none is stored. None too where a
        number is not finite, as after an overflow: JSON has no such numbers.
    """
    parts, done = dict[int, dict[str, Tensor]](), 0
    half = dtype if dtype in (torch.bfloat16, torch.float16) else None
    batches = similar_batches([len(one.ids_L) for one in probes], model)
    for number, counts in collectives.shard_indices(len(batches)):
        places = batches[number]
        with torch.autocast(model.device.type, half, enabled=half is not None):
            numbers = _ask(model, [probes[place] for place in places], with_signals)
        if counts:
            parts |= {place: {"numbers": one} for place, one in zip(places, numbers)}
        share = min(len(probes) - done, len(places) * collectives.world_size())
        done += share
        advance(share)
    rows = [one["numbers"].tolist() for one in collectives.gather_sharded(parts, len(probes))]
    return {
        "log_likelihood": [_finite(row[0]) for row in rows],
        "exact": [bool(row[1]) for row in rows],
        "kl": [_finite(row[2]) for row in rows],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def probability(found: Mapping[str, Sequence[Any]]) -> list[float]:
    """How probable each answer is: the geometric mean over its tokens, in percent; NaN where it is not known."""
    return [math.nan if value is None else 100 * math.exp(value) for value in found["log_likelihood"]]


def answer_parts(model: Any, probe: Probe) -> list[Part]:
    """What a model predicts where a stored answer stands, after one pass; as ``parts_of``.

    Args:
        model: in evaluation mode.
        probe: the answer.
    """
    return parts_of(model, sample_batch(model, [probe.ids_L], [probe.spans]))


@torch.no_grad()
def parts_of(model: Any, batch: Batch) -> list[Part]:
    """What a model predicts where the labelled tokens [A] of a batch stand; a first token is predicted from nothing.

    Args:
        model: in evaluation mode.
        batch: for ``run_unmasked``, with ``labels``.

    Returns:
        what makes the float32 logits [C, V] of some of the tokens, so that many never exist at once; together all of
        them in order, and the same ones each for every model of one vocabulary.
    """
    source_AX, read = kept_outputs(model, batch, predicting(batch["labels"]), run_unmasked)
    return [partial(_made, read, part_CX) for part_CX in chunks(source_AX, read(source_AX[:1]).shape[-1])]


@torch.no_grad()
def _made(read: Callable[[Tensor], Tensor], part_CX: Tensor) -> Tensor:
    return read(part_CX).float()


@torch.no_grad()
def _ask(model: Any, probes: Sequence[Probe], with_signals: bool) -> Tensor:
    """For each probe [B, 3]: mean log-likelihood, whether greedy decoding gives the answer, KL from its teacher."""
    batch = sample_batch(model, [one.ids_L for one in probes], [one.spans for one in probes])
    labels_BL = batch["labels"]
    signals: dict[int, Batch] = {}
    for row, one in enumerate(probes):
        if with_signals and one.logits is not None and len(one.logits.position_A):
            found = LogitSignal.collate([one.logits], [row * labels_BL.shape[1]])
            signals[row] = {name: part if part is None else part.to(labels_BL.device) for name, part in found.items()}
    # The first token of all is predicted from nothing.
    keep_BL = predicting(labels_BL)
    for signal in signals.values():
        keep_BL.view(-1)[signal["position"][signal["real"]]] = True
    moved_B = torch.full((len(probes),), math.nan, dtype=torch.float64)
    for row in signals:
        moved_B[row] = 0.0

    def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
        for row, signal in signals.items():
            moved_B[row] += float(distil_sum(logits_CV, place_C, signal, LogitSettings())) / int(signal["real"].sum())
        next_C = next_labels(labels_BL, place_C)
        same_C = (logits_CV.argmax(-1) == next_C) | (next_C == IGNORE)
        return [label_losses(logits_CV, place_C, labels_BL), same_C.float()]

    loss_N, same_N = (value_N.double().cpu() for value_N in ask(model, batch, keep_BL, values, run_unmasked))
    row_N = keep_BL.nonzero()[:, 0].cpu()
    loss_B = torch.zeros_like(moved_B).index_add_(0, row_N, loss_N)
    wrong_B = torch.zeros_like(moved_B).index_add_(0, row_N, 1 - same_N)
    return torch.stack([-loss_B / predicting(labels_BL).sum(1).cpu(), wrong_B == 0, moved_B], dim=1)


def _fitting(examples: Sequence[Any], encoder: Encoder, count: int) -> list[Encoded]:
    """Tokens of up to ``count`` examples, those left out that do not fit."""
    encoded = []
    for place in _spread(len(examples), count):
        try:
            one = encoder.encode(examples[place])
        except DataError:
            continue
        if one.learnable:
            encoded.append(one)
    return encoded


def _spread(length: int, count: int) -> list[int]:
    """Places of a list, evenly spread."""
    taken = min(length, count)
    return [number * length // taken for number in range(taken)]

"""How far a model has moved from the base model and from the one before its last task, and what plain text costs it.

KL(reference || model) in nats a token, at the stored answers of old tasks, of general data and of the new task apart:
forgetting goes with how far a model has moved, and on the new task's prompts it is said to predict it (arXiv
2509.04259). The loss on plain text is the cheapest sign of lost general ability, and needs no question.

Shapes: A answer tokens, L tokens of a window, N of them that are predicted, C tokens of one chunk, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seekr_cl.errors import DataError
from seekr_cl.evaluation.statistics import Array, Tally, bootstrap, paired_interval
from seekr_cl.memory import ReplayMemory
from seekr_cl.methods.base import Batch
from seekr_cl.methods.common.sample_passes import losses_of
from seekr_cl.models.context import context_length
from seekr_cl.system import reading
from seekr_cl.tasks.collate import IGNORE
from seekr_cl.training.probing import Part, Probe, ProbeSet, answer_parts, parts_of, probe_sets

DRIFT = "drift.json"
_WINDOW = 512
"""Tokens of plain text that are read at once, where the context is no shorter."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model that others are compared with.

    Attributes:
        name: ``base`` or ``previous``.
        model: in evaluation mode.
    """

    name: str
    model: Any


def prompt_groups(memory: ReplayMemory, count: int) -> list[ProbeSet]:
    """Up to ``count`` stored samples of each task; the newest task of the memory is the new one.

    Raises:
        DataError: if the memory holds no samples.
    """
    groups = probe_sets(memory, [], None, count)
    if not groups:
        raise DataError(f"{memory.path}: holds no samples, so there are no prompts to compare models on")
    newest = memory.tasks[-1].name
    for group in groups:
        if group.kind == "old" and group.task == newest:
            group.kind = "new"
    return groups


def that_fit(groups: Sequence[ProbeSet], models: Mapping[str, Any]) -> tuple[list[ProbeSet], list[str]]:
    """Groups of the samples that every model has room for: behind its last position one knows nothing, or fails.

    Args:
        groups: of stored samples.
        models: by name.

    Returns:
        the groups, without those of which nothing is left; and what is left out, in words.

    Raises:
        DataError: if nothing is left.
    """
    contexts = {name: length for name, one in models.items() if (length := context_length(one)) is not None}
    if not contexts:
        return list(groups), []
    name = min(contexts, key=lambda one: contexts[one])
    kept, said = list[ProbeSet](), list[str]()
    for group in groups:
        fitting = [probe for probe in group.probes if len(probe.ids_L) <= contexts[name]]
        if fitting:
            kept.append(replace(group, probes=fitting))
        if left_out := len(group.probes) - len(fitting):
            longer = f"longer than the context of {name}, {contexts[name]} tokens"
            said.append(f"task '{group.task}': {left_out} of {len(group.probes)} samples are {longer}")
    if groups and not kept:
        raise DataError(f"drift: {said[0]}, and so are all others; compare models with a longer context")
    return kept, said


def divergence(reference: Any, model: Any, probe: Probe) -> float:
    """Mean over a stored answer's tokens of KL(reference || model), over the whole vocabulary, in nats.

    Not finite where a model's logits are not.
    """
    return _divergence(answer_parts(reference, probe), answer_parts(model, probe))


@torch.no_grad()
def noise(model: Any, probe: Probe) -> float | None:
    """``divergence`` of a model from itself, once alone and once with padding behind it in a batch of two.

    None where its context has no room for padding.
    """
    length = len(probe.ids_L)
    size = min(length + max(1, length // 2), context_length(model) or 2 * length)
    if size <= length:
        return None
    ids_2L = probe.ids_L.repeat(2, 2)[:, :size].to(model.device)
    mask_2L = torch.ones_like(ids_2L)
    mask_2L[0, length:] = 0
    labels_2L = torch.full_like(ids_2L, IGNORE)
    for begin, end in probe.spans:
        labels_2L[0, begin:end] = ids_2L[0, begin:end]
    batch = {"input_ids": ids_2L, "attention_mask": mask_2L, "labels": labels_2L}
    return _divergence(answer_parts(model, probe), parts_of(model, batch))


@torch.no_grad()
def _divergence(first: Sequence[Part], second: Sequence[Part]) -> float:
    """Of the same tokens' logits, part by part; what is no number stays none."""
    total_A = torch.cat([_divergences(one(), other()) for one, other in zip(first, second, strict=True)])
    value = float(total_A.mean())
    # Rounding may leave a little less than nothing, which is none.
    return max(0.0, value) if math.isfinite(value) else value


def _divergences(first_CV: Tensor, second_CV: Tensor) -> Tensor:
    first_CV, second_CV = first_CV.log_softmax(-1), second_CV.to(first_CV.device).log_softmax(-1)
    # Of a token that the first rules out nothing is counted, whatever the second says of it.
    gap_CV = (first_CV - second_CV).masked_fill(first_CV == -math.inf, 0.0)
    return (first_CV.exp() * gap_CV).sum(-1)


def drift(model: Any, references: Sequence[Reference], groups: Sequence[ProbeSet]) -> list[dict[str, Any]]:
    """KL from each reference on each group of prompts.

    Returns:
        a record each: ``against``, ``kind``, ``task``, ``kl`` and its 95% ``interval``, ``samples``; and for the base
        against itself (``against: itself``) one record a group, the noise below which nothing is told; none where the
        context has no room to measure it in.

    Raises:
        DataError: naming the models and the task, if a model's logits are not finite.
    """
    found = []
    for reference in references:
        for group in groups:
            values = [divergence(reference.model, model, probe) for probe in group.probes]
            if not all(map(math.isfinite, values)):
                raise _not_finite([(reference.name, reference.model), ("model", model)], group)
            found.append(_record(reference.name, group, values))
    if references and not getattr(references[0].model, "query_conditioned", False):
        base = references[0].model
        for group in groups:
            values = [value for probe in group.probes if (value := noise(base, probe)) is not None]
            if not all(map(math.isfinite, values)):
                raise _not_finite([(references[0].name, base)], group)
            if values:
                found.append(_record("itself", group, values))
    return found


def _not_finite(models: Sequence[tuple[str, Any]], group: ProbeSet) -> DataError:
    """The error that names those models whose logits are at fault; all, if none alone is."""
    bad = [
        name
        for name, one in models
        if not all(part().isfinite().all() for probe in group.probes for part in answer_parts(one, probe))
    ]
    named = " and ".join(bad or [name for name, _ in models])
    return DataError(f"drift: task '{group.task}': the KL is not finite, by the logits of {named}; try --dtype float32")


def _record(against: str, group: ProbeSet, values: list[float]) -> dict[str, Any]:
    tally = Tally(np.array(values)[:, None])
    facts = {"against": against, "kind": group.kind, "task": group.task, "kl": tally.score}
    found = bootstrap(tally)
    return facts | {"interval": [found.low, found.high], "samples": len(values)}


def read_text(path: Path, tokenizer: Any, context: int | None, limit: int | None = None) -> list[Tensor]:
    """Plain text in windows of tokens.

    Args:
        path: a text file, or JSON lines with ``text``.
        tokenizer: of the models.
        context: of the shortest of them.
        limit: windows at most.

    Raises:
        DataError: naming the file, if it cannot be read or holds less than two tokens.
    """
    try:
        if path.suffix == ".jsonl":
            lines = reading.read_text(path, limit=None).split("\n")
            texts = [reading.parse_json(line)["text"] for line in lines if line.strip()]
        else:
            texts = [reading.read_text(path, limit=None)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a 'text' is no text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--text: {path}: not readable ({error}); name a text file, or JSON lines with 'text'"
        ) from error
    length = min(context or _WINDOW, _WINDOW)
    windows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows += [torch.tensor(ids[at : at + length]) for at in range(0, len(ids), length)]
    windows = [window for window in windows if len(window) > 1][:limit]
    if not windows:
        raise DataError(f"--text: {path}: holds less than two tokens of text")
    return windows


def text_losses(model: Any, windows: Sequence[Tensor]) -> Array:
    """Of each window its tokens' summed loss in nats, and their number.

    Raises:
        DataError: if a loss is not finite.
    """
    rows: list[list[float]] = []
    for window_L in windows:
        (loss_N,) = losses_of(model, [window_L], [((0, len(window_L)),)], _run_bare)
        loss = float(loss_N.sum())
        if not math.isfinite(loss):
            raise DataError(
                f"the loss on window {len(rows) + 1} of the text is not finite; try --dtype float32, or another model"
            )
        rows.append([loss, len(window_L) - 1])
    return np.array(rows)


def _run_bare(model: Any, batch: Batch) -> Any:
    # A model that looks at a question first takes plain text for one.
    return model(input_ids=batch["input_ids"], use_cache=False)


def compare_text(losses: dict[str, Array]) -> dict[str, Any]:
    """Loss a token of each model, and how much the first one's is above each other's, with 95% intervals.

    Args:
        losses: ``text_losses`` by name, that of the model in question first.
    """
    names = list(losses)
    tallies = {name: Tally(rows, _per_token) for name, rows in losses.items()}
    found: dict[str, Any] = {name: {"loss": tally.score} for name, tally in tallies.items()}
    for name in names[1:]:
        rise = paired_interval([tallies[name]], [tallies[names[0]]])
        found[name] |= {"rise": tallies[names[0]].score - tallies[name].score, "interval": [rise.low, rise.high]}
    return found | {"windows": len(losses[names[0]]), "tokens": int(losses[names[0]][:, 1].sum())}


def _per_token(sums_RC: Array, count: int) -> Array:
    return sums_RC[:, 0] / sums_RC[:, 1]

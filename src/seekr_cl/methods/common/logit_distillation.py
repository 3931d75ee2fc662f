"""Teacher logits as a replay method uses them: taken after a task, padded into batches, compared with the student's.

Kept tokens are compared exactly; the rest of the vocabulary counts as one bucket on both sides, unless tokens drawn
from it stand for it. Under ``logit_form: cross_entropy`` the teacher's entropy stays in the value (same gradient).

Shapes: L tokens of a sample, A answer positions, K kept tokens, V vocabulary, B batch, G samples of it with signals,
N positions in all.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seekr_cl.errors import ConfigError
from seekr_cl.memory import LogitSignal, MemoryTask, ReplaySample
from seekr_cl.methods import answers
from seekr_cl.methods.answers import label_losses, predicting
from seekr_cl.methods.base import Batch, Layout, LossTerm, ask
from seekr_cl.settings import Ge, Hint, Le, Settings, setting

Said = Callable[[Tensor], Tensor]
"""Of positions [C] in a sample: the logits [C, V] there."""
_NO_LOGITS = (
    "memory: some samples have no teacher logits (they were kept by another method); "
    "use that method again or begin a new memory"
)


@dataclass(frozen=True, kw_only=True)
class LogitSettings(Settings):
    """How the earlier model's outputs are kept and compared.

    Attributes:
        lambda1: weight of the labels on old samples; 1 - lambda1 is the weight of the logits (eq. 13).
        logits_top_k: tokens kept of each distribution; null keeps them all.
        logits_tail: what stands for the other tokens: tokens ``sampled`` from them, or one ``bucket``.
        logit_alignment: ``next_token`` distils the positions that predict the answer tokens; ``label`` the positions
            of these tokens themselves, as the official code does.
        teacher: where the earlier model's signals come from: ``stored`` with the samples, or ``adapter``: the memory
            keeps the adapter each task ended with (``peft``), which is asked while its samples are replayed.
        logit_form: ``kl`` (eq. 3) or ``cross_entropy`` (the official code: same gradient, never zero).
    """

    lambda1: Annotated[float, Ge(0), Le(1), Hint("0 is logits only, 1 is labels only")] = 0.5
    logits_top_k: Annotated[int | None, Ge(1), Hint("null keeps all tokens")] = setting(
        64, needs={"teacher": "stored"}, why="adapters are asked for whole distributions"
    )
    logits_tail: Literal["sampled", "bucket"] = setting(
        "sampled", needs={"logits_top_k": ..., "teacher": "stored"}, why="it stands for tokens that are not stored"
    )
    logit_alignment: Literal["next_token", "label"] = "next_token"
    logit_form: Literal["kl", "cross_entropy"] = "kl"
    teacher: Literal["stored", "adapter"] = "stored"


def can_keep(model: PreTrainedModel) -> bool:
    """Whether the model can be told how many positions' logits are wanted, the last ones."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def first_position(sample: ReplaySample) -> int:
    """The first position whose output any loss on the sample's answer uses."""
    return max(0, sample.spans[0][0] - 1)


def predicting_positions(sample: ReplaySample) -> Tensor:
    """The positions [A] of a sample that predict the tokens it teaches."""
    position_A = torch.cat([torch.arange(begin, end) for begin, end in sample.spans]) - 1
    # An answer without a prompt has no position before its first token.
    return position_A[position_A >= 0]


def chunks(position_A: Tensor, vocabulary: int) -> Sequence[Tensor]:
    """Positions in parts of which the float32 logits are no larger than a set size; at least one part."""
    return position_A.split(max(1, answers.CHUNK_BYTES // (4 * vocabulary)))


def logit_positions(sample: ReplaySample, settings: LogitSettings) -> Tensor:
    """The positions [A] of a sample whose output is distilled."""
    if settings.logit_alignment == "label":
        return torch.cat([torch.arange(begin, end) for begin, end in sample.spans])
    return predicting_positions(sample)


def take_logits(said: Said, sample: ReplaySample, settings: LogitSettings, dtype: str) -> LogitSignal:
    """The distributions of one sample's answer positions.

    Args:
        said: gives logits of the sample.
        sample: the sample.
        settings: which positions and how many tokens.
        dtype: precision of what is kept, a key of ``quantise.DTYPES``.
    """
    position_A, parts, done = logit_positions(sample, settings), [], 0
    for part_C in chunks(position_A, said(position_A[:1]).shape[-1]):
        given = (part_C, said(part_C).cpu(), settings.logits_top_k, dtype, settings.logits_tail, done)
        parts.append(LogitSignal.encode(*given))
        done += len(part_C)
    return LogitSignal.joined(parts)


def require_all_logits(tasks: Sequence[MemoryTask]) -> None:
    """Makes sure that all samples of a memory have a teacher's logits, or their task a teacher; none is read.

    Raises:
        ConfigError: if some were kept by a method that stores none.
    """
    if any(task.totals.logits < task.totals.samples for task in tasks if task.teacher is None):
        raise ConfigError(_NO_LOGITS)


def pad_logits(samples: list[ReplaySample], layout: Layout, padded: int, rows: Sequence[int] | None = None) -> Batch:
    """``LogitSignal.collate`` of a batch or ``rows`` of it, positions counted through all rows; ConfigError without."""
    found = [sample.signals.get("logits") for sample in samples]
    signals = [signal for signal in found if isinstance(signal, LogitSignal)]
    if len(signals) < len(samples):
        raise ConfigError(_NO_LOGITS)
    starts = zip(rows or range(len(samples)), samples)
    return LogitSignal.collate(signals, [row * padded + layout.offset(len(one.ids_L), padded) for row, one in starts])


def distil_logits(logits_BLV: Tensor, signals: Batch, settings: LogitSettings) -> Tensor:
    """L_ld (eq. 3): mean divergence between the teacher's and the student's next-token distributions.

    ``signals`` are as ``pad_logits`` gives them.
    """
    place_N = torch.arange(logits_BLV.shape[:2].numel(), device=logits_BLV.device)
    total = distil_sum(logits_BLV.flatten(0, 1), place_N, signals, settings)
    return total / signals["real"].sum().clamp(min=1)


def distil_sum(logits_CV: Tensor, place_C: Tensor, signals: Batch, settings: LogitSettings) -> Tensor:
    """What ``distil_logits`` is the mean of, summed up over some places of the flattened batch."""
    here_GA = signals["real"] & torch.isin(signals["position"], place_C)
    logits_NV = logits_CV[torch.searchsorted(place_C, signals["position"][here_GA])].float()
    p_NK, tail_N = signals["prob"][here_GA].float(), signals["tail"][here_GA].float()
    logq_NV = logits_NV.log_softmax(-1)
    entropy_N = -torch.special.xlogy(p_NK, p_NK).sum(-1) - signals["offset"][here_GA].float()
    if signals["token"] is None:
        cross_N = -(p_NK * logq_NV).sum(-1)
    else:
        token_NK = signals["token"][here_GA]
        logq_tail_N = logq_NV.scatter(-1, token_NK, torch.finfo(logq_NV.dtype).min).logsumexp(-1)
        cross_N = -(p_NK * logq_NV.gather(-1, token_NK)).sum(-1) - tail_N * logq_tail_N
        entropy_N = entropy_N - torch.special.xlogy(tail_N, tail_N)
    return (cross_N - entropy_N if settings.logit_form == "kl" else cross_N).sum()


def label_and_logit_terms(
    model: Any, batch: Batch, answers: Sequence[Batch], settings: LogitSettings
) -> dict[str, LossTerm]:
    """lambda1 L_replay + (1 - lambda1) L_ld of a replay batch (eq. 13); each answer is of one teacher's samples."""
    labels_BL, keep_BL = batch["labels"], predicting(batch["labels"])
    labels, positions = keep_BL.sum(), torch.stack([one["real"].sum() for one in answers]).sum()
    for one in answers:
        keep_BL.view(-1)[one["position"][one["real"]]] = True

    def sums(logits_CV: Tensor, place_C: Tensor) -> tuple[Tensor, Tensor]:
        logit = torch.stack([distil_sum(logits_CV, place_C, one, settings) for one in answers]).sum()
        return label_losses(logits_CV, place_C, labels_BL).sum(), logit

    label, logit = ask(model, batch, keep_BL, sums)
    return {
        "replay": LossTerm(label / labels.clamp(min=1), settings.lambda1, labels),
        "logits": LossTerm(logit / positions.clamp(min=1), 1 - settings.lambda1, positions),
    }

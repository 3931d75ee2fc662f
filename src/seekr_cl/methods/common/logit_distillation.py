"""Teacher logits as a replay method uses them: taken after a task, padded into batches, compared with the student's.

Shapes: L tokens of a sample, A answer positions, K kept tokens, V vocabulary, B batch.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from seekr_cl.errors import ConfigError
from seekr_cl.memory import LogitSignal, MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Layout
from seekr_cl.methods.losses import logit_distillation
from seekr_cl.settings import Ge, Hint, Le, Settings, setting

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
        64, needs={"teacher": "stored"}, why="an adapter stores no signals"
    )
    logits_tail: Literal["sampled", "bucket"] = setting(
        "sampled", needs={"logits_top_k": ..., "teacher": "stored"}, why="it stands for tokens that are not stored"
    )
    logit_alignment: Literal["next_token", "label"] = "next_token"
    logit_form: Literal["kl", "cross_entropy"] = "kl"
    teacher: Literal["stored", "adapter"] = "stored"


def answer_logits(model: PreTrainedModel, ids_1L: Tensor, first: int) -> Tensor:
    """The logits [L - first, V] of a sample's positions from ``first`` on.

    Models that can leave out the vocabulary product for the prompt are told to.
    """
    keep = {"logits_to_keep": ids_1L.shape[1] - first} if can_keep(model) else {}
    logits_1NV = model(input_ids=ids_1L, use_cache=False, **keep).logits
    return logits_1NV[0, logits_1NV.shape[1] - (ids_1L.shape[1] - first) :]


def can_keep(model: PreTrainedModel) -> bool:
    """Whether the model can be told how many positions' logits are wanted, the last ones."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def first_position(sample: ReplaySample) -> int:
    """The first position whose output any loss on the sample's answer uses."""
    return max(0, sample.spans[0][0] - 1)


def logit_positions(sample: ReplaySample, settings: LogitSettings) -> Tensor:
    """The positions [A] of a sample whose output is distilled."""
    labelled_A = torch.cat([torch.arange(begin, end) for begin, end in sample.spans])
    position_A = labelled_A if settings.logit_alignment == "label" else labelled_A - 1
    # An answer without a prompt has no position before its first token.
    return position_A[position_A >= 0]


def take_logits(logits_NV: Tensor, sample: ReplaySample, settings: LogitSettings, dtype: str) -> LogitSignal:
    """The distributions of one sample's answer positions.

    Args:
        logits_NV: logits of the sample's positions from ``first_position`` on.
        sample: the sample.
        settings: which positions and how many tokens.
        dtype: precision of what is kept, a key of ``quantise.DTYPES``.
    """
    position_A = logit_positions(sample, settings)
    logits_AV = logits_NV[position_A - first_position(sample)].cpu()
    return LogitSignal.encode(position_A, logits_AV, settings.logits_top_k, dtype, settings.logits_tail)


def require_logits(samples: list[ReplaySample]) -> None:
    """Makes sure that every sample has a teacher's logits.

    Raises:
        ConfigError: if some were kept by a method that stores none.
    """
    if any(sample.logits is None for sample in samples):
        raise ConfigError(_NO_LOGITS)


def require_all_logits(tasks: Sequence[MemoryTask]) -> None:
    """The same for all samples of a memory, none of which is read.

    Raises:
        ConfigError: if some were kept by a method that stores none.
    """
    if any(task.totals.logits < task.totals.samples for task in tasks if task.teacher is None):
        raise ConfigError(_NO_LOGITS)


def pad_logits(samples: list[ReplaySample], layout: Layout, padded: int) -> Batch:
    """The logit signals of a batch: ``position``, ``real``, ``tail``, ``offset`` [B, A], ``prob``, ``token`` [B, A, K].

    ``token`` is ``None`` where all samples keep the whole vocabulary.
    """
    require_logits(samples)
    kept = [
        (sample.logits, layout.offset(len(sample.ids_L), padded)) for sample in samples if sample.logits is not None
    ]
    widest = max(signal.code_AK.shape[1] for signal, _ in kept)
    # Tokens by name as soon as one signal names them; under a larger ``logits_top_k`` another may hold more.
    named = any(signal.token_AK is not None or signal.code_AK.shape[1] < widest for signal, _ in kept)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("position", "real", "prob", "token", "tail", "offset")}
    for signal, offset in kept:
        count, width = signal.code_AK.shape
        prob_AK, token_AK, tail_A, offset_A = signal.decode()
        # What fills the room has probability zero and repeats a kept token, so that the tail stays what it was.
        filler_AK = token_AK[:, :1].expand(-1, widest - width)
        columns["position"].append(signal.position_A + offset)
        columns["real"].append(torch.ones(count, dtype=torch.bool))
        columns["prob"].append(F.pad(prob_AK, (0, widest - width)))
        columns["token"].append(torch.cat([token_AK, filler_AK], 1))
        columns["tail"].append(tail_A)
        columns["offset"].append(offset_A)
    batch: Batch = {name: pad_sequence(column, batch_first=True) for name, column in columns.items()}
    return batch if named else batch | {"token": None}


def distil_logits(logits_BLV: Tensor, signals: Batch, settings: LogitSettings) -> Tensor:
    """L_ld of a batch (eq. 3)."""
    return logit_distillation(
        logits_BLV,
        signals["position"],
        signals["real"],
        signals["prob"],
        signals["token"],
        signals["tail"],
        signals["offset"],
        settings.logit_form,
    )

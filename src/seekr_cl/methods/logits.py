"""Teacher logits as a replay method uses them: taken after a task, padded into batches, compared with the student's.

Shapes: L tokens of a sample, A answer positions, K kept tokens, V vocabulary, B batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seekr_cl.errors import ConfigError
from seekr_cl.memory import LogitSignal, ReplaySample
from seekr_cl.methods.base import Batch, Layout
from seekr_cl.methods.losses import logit_distillation, teacher_logprobs

ALIGNMENTS = ("next_token", "label")
FORMS = ("kl", "cross_entropy")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitSettings:
    """How the earlier model's outputs are kept and compared.

    Attributes:
        lambda1: weight of the labels on old samples; 1 - lambda1 is the weight of the logits (eq. 13).
        logits_top_k: tokens kept of each distribution, the rest as one bucket; null keeps them all.
        logit_alignment: ``next_token`` distils the positions that predict the answer tokens; ``label`` the positions
            of these tokens themselves, as the official code does.
        logit_form: ``kl`` (eq. 3) or ``cross_entropy`` (the official code: same gradient, never zero).
    """

    lambda1: float = 0.5
    logits_top_k: int | None = 64
    logit_alignment: str = "next_token"
    logit_form: str = "kl"

    def __post_init__(self) -> None:
        if not 0 <= self.lambda1 <= 1:
            raise ConfigError(f"method.lambda1: {self.lambda1} must lie between 0 (logits only) and 1 (labels only)")
        if self.logits_top_k is not None and self.logits_top_k < 1:
            raise ConfigError(f"method.logits_top_k: {self.logits_top_k} must be at least 1, or null for all tokens")
        for key, known in (("logit_alignment", ALIGNMENTS), ("logit_form", FORMS)):
            if getattr(self, key) not in known:
                raise ConfigError(f"method.{key}: '{getattr(self, key)}' is unknown; choose from {', '.join(known)}")


def take_logits(logits_LV: Tensor, sample: ReplaySample, settings: LogitSettings) -> LogitSignal:
    """The distributions of one sample's answer positions, from the logits of its own L tokens."""
    labelled_A = torch.arange(sample.completion_start, len(sample.ids_L))
    position_A = labelled_A if settings.logit_alignment == "label" else labelled_A - 1
    # An answer without a prompt has no position before its first token.
    position_A = position_A[position_A >= 0]
    logprob_AK, token_AK = teacher_logprobs(logits_LV[position_A], settings.logits_top_k)
    return LogitSignal(position_A, logprob_AK.cpu(), None if token_AK is None else token_AK.cpu())


def require_logits(samples: list[ReplaySample]) -> None:
    """Makes sure that every sample has a teacher's logits.

    Raises:
        ConfigError: if some were kept by a method that stores none.
    """
    if any(sample.logits is None for sample in samples):
        raise ConfigError(
            "memory: some samples have no teacher logits (they were kept by another method); "
            "use that method again or begin a new memory"
        )


def pad_logits(samples: list[ReplaySample], layout: Layout, padded: int) -> Batch:
    """The logit signals of a batch as ``position`` [B, A], ``real`` [B, A], ``logprob`` [B, A, K], ``token``."""
    signals = [(sample.logits, layout.offset(len(sample.ids_L), padded)) for sample in samples]
    require_logits(samples)
    kept = [(signal, offset) for signal, offset in signals if signal is not None]
    widest = max(signal.logprob_AK.shape[1] for signal, _ in kept)
    if any(signal.logprob_AK.shape[1] < widest for signal, _ in kept):
        kept = [(_widened(signal, widest), offset) for signal, offset in kept]
    return {
        "position": pad_sequence([signal.position_A + offset for signal, offset in kept], batch_first=True),
        "real": pad_sequence([torch.ones_like(signal.position_A, dtype=torch.bool) for signal, _ in kept], True),
        "logprob": pad_sequence([signal.logprob_AK for signal, _ in kept], batch_first=True),
        "token": None
        if any(signal.token_AK is None for signal, _ in kept)
        else pad_sequence([signal.token_AK for signal, _ in kept if signal.token_AK is not None], batch_first=True),
    }


def _widened(signal: LogitSignal, widest: int) -> LogitSignal:
    """A signal with room for as many tokens as another that was kept under a larger ``logits_top_k``.

    What fills the room has probability zero and repeats a kept token, so that the tail stays what it was.
    """
    count, kept = signal.logprob_AK.shape
    token_AK = torch.arange(kept).expand(count, -1) if signal.token_AK is None else signal.token_AK
    room = widest - kept
    return LogitSignal(
        signal.position_A,
        torch.cat([signal.logprob_AK, torch.full((count, room), -torch.inf)], 1),
        torch.cat([token_AK, token_AK[:, :1].expand(-1, room)], 1),
    )


def distil_logits(logits_BLV: Tensor, signals: Batch, settings: LogitSettings) -> Tensor:
    """L_ld of a batch (eq. 3)."""
    return logit_distillation(
        logits_BLV, signals["position"], signals["real"], signals["logprob"], signals["token"], settings.logit_form
    )

"""Weights on the new task's own loss (``task_loss``), under every method: less of what the model finds unlikely.

L_task is the mean over answer tokens of w * -log p, with w held fixed. ``dft``, ``eaft`` and ``talr`` read w off the
model as it is in each step; ``stm`` and ``flow`` ask the model as it is before the task, once. Replayed samples and
what else a method adds weigh what they did. docs/task_losses.md says when they do not learn.

Shapes: B batch, V vocabulary, N answer tokens of a batch, A answer tokens of an example.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from seekr_cl.errors import ConfigError
from seekr_cl.settings import Ge, Gt, Hint, Settings, build_kind

EAFT_SCALE = 3.0
"""Nats by which EAFT divides an entropy: about that of 20 equally likely tokens, ln 20."""


@dataclass(frozen=True, kw_only=True)
class TaskLossSettings(Settings):
    """Base of the five groups, each a ``TokenWeights`` or a ``BeforeWeights``.

    Attributes:
        name: what the setting calls it.
        entropy_of: of how many likeliest tokens it needs the entropy; 0: of none.
    """

    section: ClassVar[str] = "task_loss"
    name: ClassVar[str]

    @property
    def entropy_of(self) -> int:
        """Of how many likeliest tokens the weight needs the entropy; 0: of none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class TokenWeights(TaskLossSettings, ABC):
    """Weights that are read off the model as it is in each step."""

    @abstractmethod
    def weights(self, loss_N: Tensor, entropy_N: Tensor | None) -> Tensor:
        """The weights [N] of tokens.

        Args:
            loss_N: each token's negative log-probability in nats, without gradient.
            entropy_N: the entropy of the likeliest tokens in nats, if ``entropy_of`` asks for it.
        """


@dataclass(frozen=True, kw_only=True)
class BeforeWeights(TaskLossSettings, ABC):
    """Weights that follow from what the model before the task says of its examples."""

    @abstractmethod
    def of_examples(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """The weights [A] of each example's tokens.

        Args:
            losses: negative log-probabilities [A] by example.
        """


@dataclass(frozen=True, kw_only=True)
class DFTSettings(TokenWeights):
    """Dynamic fine-tuning (Wu et al., 2025, arXiv 2508.05629): w = p, the model's probability of the token."""

    name = "dft"

    def weights(self, loss_N: Tensor, entropy_N: Tensor | None) -> Tensor:
        """The tokens' probabilities."""
        return (-loss_N).exp()


@dataclass(frozen=True, kw_only=True)
class EAFTSettings(TokenWeights):
    """Entropy-adaptive fine-tuning (Diao et al., 2026, arXiv 2601.02151): w = (H / 3)^alpha.

    H is the entropy in nats of the likeliest tokens among themselves.

    Attributes:
        alpha: exponent; the paper's 1.
        top_k: how many tokens H is of, their probabilities taken to sum to 1; the paper's 20.
    """

    name = "eaft"
    alpha: Annotated[float, Gt(0), Hint("at 0 all tokens weigh alike, which is no task_loss")] = 1.0
    top_k: Annotated[int, Ge(2)] = 20

    @property
    def entropy_of(self) -> int:
        """As set."""
        return self.top_k

    def weights(self, loss_N: Tensor, entropy_N: Tensor | None) -> Tensor:
        """From the entropy alone, whatever the label."""
        assert entropy_N is not None
        return (entropy_N / EAFT_SCALE) ** self.alpha


@dataclass(frozen=True, kw_only=True)
class TALRSettings(TokenWeights):
    """Token-adaptive loss reweighting (Lin et al., ICLR 2026, arXiv 2509.20758): w = exp(-loss / tau).

    Attributes:
        tau: temperature in nats; default the median loss of the batch's answer tokens.
    """

    name = "talr"
    tau: Annotated[float | None, Gt(0)] = None

    def weights(self, loss_N: Tensor, entropy_N: Tensor | None) -> Tensor:
        """Near 1 for easy tokens, 1/e at tau."""
        tau = self.tau or float(loss_N.median()) if len(loss_N) else 1.0
        return (-loss_N / max(tau, torch.finfo(torch.float32).tiny)).exp()


@dataclass(frozen=True, kw_only=True)
class STMSettings(BeforeWeights):
    """Selective token masking (Wu et al., NeurIPS 2025, arXiv 2501.14315): w = 0 for tokens unlikely before the task.

    Of the tokens that are left, w is one over their share of the task, so that L_task is a mean over them.

    Attributes:
        threshold: a token's perplexity under the model before the task above which it is not learned.
    """

    name = "stm"
    threshold: Annotated[float, Gt(1), Hint("no token's perplexity is lower")] = 2.5

    def of_examples(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """1 over the share of all tokens that are kept, or 0."""
        kept = [loss_A <= math.log(self.threshold) for loss_A in losses]
        count = sum(int(kept_A.sum()) for kept_A in kept)
        if not count:
            raise ConfigError(
                f"task_loss.threshold: {self.threshold:g} leaves no token of this task to learn: the model before it "
                "finds every one less likely; raise it, or remove task_loss"
            )
        return [kept_A * (sum(map(len, kept)) / count) for kept_A in kept]


@dataclass(frozen=True, kw_only=True)
class FLOWSettings(BeforeWeights):
    """Upweighting easy samples (Sanyal et al., ICML 2025, arXiv 2502.02797): w = exp(-loss / tau), one for a sample.

    Attributes:
        tau: temperature in nats; default the median of the samples' mean losses under the model before the task.
    """

    name = "flow"
    tau: Annotated[float | None, Gt(0)] = None

    def of_examples(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """The sample's weight for each of its tokens."""
        mean_B = torch.stack([loss_A.mean() if len(loss_A) else loss_A.new_zeros(()) for loss_A in losses])
        tau = max(self.tau or float(mean_B.median()), torch.finfo(torch.float32).tiny)
        return [torch.full_like(loss_A, math.exp(-float(mean) / tau)) for loss_A, mean in zip(losses, mean_B)]


KINDS: dict[str, type[TaskLossSettings]] = {
    kind.name: kind for kind in (DFTSettings, EAFTSettings, TALRSettings, STMSettings, FLOWSettings)
}


def read_task_loss(value: Any) -> TaskLossSettings | None:
    """The ``task_loss`` setting: a name, a mapping with ``name`` and settings, or nothing.

    Raises:
        ConfigError: for an unknown name or key, naming the nearest, or a value that cannot be.
    """
    if value is None or isinstance(value, TaskLossSettings):
        return value
    return build_kind(KINDS, value, "task_loss", "name", "{name: stm, threshold: 2.5}")


def as_json(settings: TaskLossSettings | None) -> dict[str, Any] | None:
    """Name and settings."""
    return None if settings is None else {"name": settings.name} | asdict(settings)


@dataclass(slots=True)
class TaskLoss:
    """The weighted loss of one task.

    Attributes:
        settings: which weights.
        of_example: each example's weights [A] where they were known beforehand.
        used: whether a loss was asked of it, so that a method that passes it over is found.
    """

    settings: TaskLossSettings
    of_example: list[Tensor] = field(default_factory=list)
    used: bool = False

    def weighted(self, loss_N: Tensor, entropy_N: Tensor | None, example_B: Tensor) -> Tensor:
        """The weighted mean over a batch's answer tokens.

        Args:
            loss_N: each one's negative log-probability, row by row of the batch.
            entropy_N: as in ``TokenWeights.weights``.
            example_B: which of the task's examples the rows are.
        """
        self.used = True
        if isinstance(self.settings, TokenWeights):
            weight_N = self.settings.weights(loss_N.detach(), entropy_N)
        else:
            weight_N = torch.cat([self.of_example[place] for place in example_B.tolist()]).to(loss_N)
        return (weight_N * loss_N).sum() / max(1, len(loss_N))


def top_entropy(logits_NV: Tensor, count: int) -> Tensor:
    """The entropy in nats of the likeliest ``count`` tokens' distribution among themselves, [N]."""
    logp_NK = logits_NV.topk(min(count, logits_NV.shape[-1]), dim=-1).values.log_softmax(-1)
    return -(logp_NK.exp() * logp_NK).sum(-1)

"""Settings of evaluation."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch

from seekr_cl.evaluation.batches import BATCH_TOKENS
from seekr_cl.settings import Ge, Settings


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """How answers are generated.

    Attributes:
        dtype: what a model computes answers in: ``bfloat16``, ``float32``, or ``auto``: what training computes in
            (``bf16``, ``fp16``), and without that the weights' own precision (an adapter's that of its base model).
        batch_tokens: the most tokens of a batch, prompts with their padding and new ones together.
    """

    section: ClassVar[str] = "evaluation"

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    batch_tokens: Annotated[int, Ge(1)] = BATCH_TOKENS

    def precision(self, training: Any = None) -> torch.dtype | None:
        """What answers are computed in; ``None`` is the weights' own precision.

        Args:
            training: training arguments with ``bf16`` and ``fp16``, where a model that was trained is evaluated.
        """
        if self.dtype != "auto":
            return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        if getattr(training, "bf16", False):
            return torch.bfloat16
        return torch.float16 if getattr(training, "fp16", False) and torch.cuda.is_available() else None

"""SEEKR: replay with the earlier model's logits and with the attention of the heads that matter most.

One step is ``replay_terms``, one task's end is ``after_task``; what they use is ``attention/`` (rows and their
divergence), ``heads/`` (importance, budgets) and ``scoring`` (what is measured on the kept samples).

Shapes: B batch, L padded length, V vocabulary, M chosen heads of a layer, R queries,
P (sample, head) pairs of a layer in a batch, N tappable layers, H query heads.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seekr_cl.attention import AttentionTap, DenseRows, DistillRows, RowIndex, RowTarget
from seekr_cl.errors import ConfigError
from seekr_cl.heads import HeadImportance, all_heads, draw_queries, random_heads, resolve_budget, select_heads
from seekr_cl.heads.importance import RULES
from seekr_cl.heads.selection import Budget
from seekr_cl.memory import AttentionSignal, MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, forward, task_generator
from seekr_cl.methods.logits import LogitSettings, distil_logits, pad_logits, require_logits, take_logits
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.methods.scoring import MEASURES, Scorer

CHOICES = ("importance", "random", "sensitivity", "forgettability", "all")
REDUCTIONS = ("sample_mean", "layer_mean", "sum")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeekrSettings(LogitSettings):
    """Settings of SEEKR; budgets are counts, fractions of what the model has, or null for all.

    Attributes:
        lambda2: weight of the attention term (eq. 13), or ``auto`` to steer it to ``attention_share``.
        attention_share: the attention term's share of all terms' gradient norms that ``lambda2: auto`` aims at.
        heads: how heads are chosen: ``importance`` (eq. 10), its factors ``sensitivity`` or ``forgettability`` alone,
            ``random``, or ``all``.
        layer_budget: B_L.
        head_budget: B_H, over all layers together.
        query_budget: B_T for each sample.
        importance_rule: ``product_of_sums`` (eq. 8 to 10) or ``sum_of_products`` (official code).
        measure: what S and F average over: ``valid``, ``frobenius`` (eq. 7 and 9) or ``padded`` (official code).
        attention_reduction: ``sample_mean`` averages over a sample's heads, queries and layers, then over samples;
            ``layer_mean`` over the union of the batch's layers (official code); ``sum`` adds heads and queries (eq. 5).
        attention_eps: added to the student's probabilities in the logarithm (official code: 1e-8).
        query_replacement: draw queries with replacement where a sample is shorter than the budget (official code).
        gradient_leak: let the scoring pass's gradients into the next task's first step (official code).
    """

    lambda2: float | str = "auto"
    attention_share: float = 0.3
    heads: str = "importance"
    layer_budget: Budget = 0.75
    head_budget: Budget = 0.5
    query_budget: Budget = 100
    importance_rule: str = "product_of_sums"
    measure: str = "valid"
    attention_reduction: str = "sample_mean"
    attention_eps: float = 0.0
    query_replacement: bool = False
    gradient_leak: bool = False

    def __post_init__(self) -> None:
        LogitSettings.__post_init__(self)
        if isinstance(self.lambda2, str) and self.lambda2 != "auto":
            raise ConfigError(f"method.lambda2: '{self.lambda2}' is neither a number nor 'auto'")
        if not isinstance(self.lambda2, str) and self.lambda2 < 0:
            raise ConfigError(f"method.lambda2: {self.lambda2} is negative; 0 turns attention distillation off")
        if not 0 < self.attention_share < 1:
            raise ConfigError(f"method.attention_share: {self.attention_share} must lie between 0 and 1")
        if self.attention_eps < 0:
            raise ConfigError(f"method.attention_eps: {self.attention_eps} is negative; 0 is exact")
        for key, known in (
            ("heads", CHOICES),
            ("importance_rule", RULES),
            ("measure", MEASURES),
            ("attention_reduction", REDUCTIONS),
        ):
            if getattr(self, key) not in known:
                raise ConfigError(f"method.{key}: '{getattr(self, key)}' is unknown; choose from {', '.join(known)}")
        for key in ("layer_budget", "head_budget", "query_budget"):
            resolve_budget(f"method.{key}", getattr(self, key), 1 << 30, lambda _: None)
        if self.query_budget == 0:
            raise ConfigError("method.query_budget: 0 leaves nothing to measure; give a count, a fraction or null")


class Seekr(Method):
    """L = L_task + lambda1 L_replay + (1 - lambda1) L_ld + lambda2 L_seekr (eq. 13)."""

    name = "seekr"
    paper = Paper(
        "SEEKR: Selective Attention-Guided Knowledge Retention for Continual Learning of Large Language Models",
        "He et al., EMNLP 2024",
        "https://arxiv.org/abs/2411.06171",
    )
    Settings = SeekrSettings
    replays = True
    settings: SeekrSettings

    def __init__(self, settings: SeekrSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.tap = AttentionTap(context.model)
        former = context.importance
        if former is not None and former.layers != tuple(self.tap.heads):
            raise ConfigError("memory: its head importance is of a model with other attention layers")
        self._importance = former or HeadImportance.zeros(self.tap.heads)
        if 0 in (settings.layer_budget, settings.head_budget) and settings.heads != "all" and settings.lambda2 != 0:
            context.warn("method.layer_budget or head_budget is 0: no head is chosen, attention is not kept")
        self._queries: list[Tensor] = []
        self._before: list[dict[int, Tensor]] = []

    @property
    def importance(self) -> HeadImportance:
        """S and F accumulated over all tasks so far."""
        return self._importance

    # One step -------------------------------------------------------------------------------------------------

    def task_terms(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """New examples are plain fine-tuning: nobody looks at their attention."""
        self.tap.action = None
        return super().task_terms(model, batch)

    def replay_terms(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Labels, logits and attention of the old samples; the new model runs its own fast attention kernel."""
        distil = DistillRows(batch["attention"], self.settings.attention_eps)
        # Gradient checkpointing runs the layers again in the backward pass, so the action stays until the next step.
        self.tap.action = distil
        logits_BLV = forward(model, batch)
        layer_losses = distil.losses()
        divisor = len(layer_losses) if self.settings.attention_reduction == "layer_mean" else 1
        attention = sum(layer_losses.values(), torch.zeros((), device=logits_BLV.device)) / max(1, divisor)
        return {
            "replay": LossTerm(causal_lm_loss(logits_BLV, batch["labels"]), self.settings.lambda1),
            "logits": LossTerm(distil_logits(logits_BLV, batch["logits"], self.settings), 1 - self.settings.lambda1),
            "attention": LossTerm(attention, self._lambda2),
        }

    @property
    def _lambda2(self) -> float:
        # Under "auto" the trainer replaces this starting value as soon as it has measured the gradients.
        return 1.0 if isinstance(self.settings.lambda2, str) else self.settings.lambda2

    def share_target(self) -> tuple[str, float] | None:
        """``lambda2: auto`` asks for a share of the gradient norm."""
        return ("attention", self.settings.attention_share) if self.settings.lambda2 == "auto" else None

    def check_replay(self, samples: list[ReplaySample]) -> None:
        """Every sample needs logits; without rows it is only left out of the attention term."""
        require_logits(samples)
        without = sum(sample.attention is None for sample in samples)
        if without and self.settings.lambda2 != 0:
            self.context.warn(
                f"{without} of {len(samples)} samples in the memory have no attention rows (they were kept by another "
                "method), so the attention term leaves them out"
            )

    def replay_extras(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """Stored logits, and for each layer the stored rows with their places and weights in this batch."""
        samples = [sample for _, sample in picked]
        return {
            "logits": pad_logits(samples, self.context.layout, padded),
            "attention": self._row_targets(picked, padded),
        }

    def _row_targets(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> dict[int, list[RowTarget]]:
        """One layer's P pairs are all (sample, head) that some sample of the batch distils in this layer."""
        targets: dict[int, list[RowTarget]] = {}
        num_queries = max((len(s.attention.query_R) for _, s in picked if s.attention is not None), default=0)
        for layer in sorted({layer for task, _ in picked for layer in task.heads}):
            places: list[tuple[int, int]] = []
            queries, rows, weights = [], [], []
            for number, (task, sample) in enumerate(picked):
                if sample.attention is None or layer not in task.heads:
                    continue
                rows_MRL, query_R = sample.attention.rows[layer], sample.attention.query_R
                start, length, given = self.context.layout.offset(len(sample.ids_L), padded), *rows_MRL.shape[:0:-1]
                room_R, room_MRL = (
                    torch.zeros(num_queries, dtype=torch.long),
                    torch.zeros(len(rows_MRL), num_queries, padded),
                )
                # Rows that only fill the rectangle point at a real query and weigh nothing.
                room_R[:] = start
                room_R[:given] = query_R + start
                room_MRL[:, :given, start : start + length] = rows_MRL
                weight_R = torch.zeros(num_queries)
                weight_R[:given] = self._row_weight(len(picked), len(rows_MRL), given, len(task.heads))
                places += [(number, head) for head in task.heads[layer]]
                queries.append(room_R.expand(len(rows_MRL), -1))
                rows.append(room_MRL)
                weights.append(weight_R.expand(len(rows_MRL), -1))
            if places:
                sample_P, head_P = torch.tensor(places).T
                index = RowIndex(sample_P, head_P, torch.cat(queries))
                targets[layer] = [RowTarget(index, DenseRows(torch.cat(rows)), torch.cat(weights))]
        return targets

    def _row_weight(self, batch: int, heads: int, queries: int, layers: int) -> float:
        if self.settings.attention_reduction == "sum":
            return 1 / batch
        per_layer = 1 / (batch * heads * queries)
        return per_layer / layers if self.settings.attention_reduction == "sample_mean" else per_layer

    # One task's ends ------------------------------------------------------------------------------------------

    def before_task(self, samples: list[ReplaySample]) -> None:
        """Draws each kept sample's queries and records the attention there before the task is trained."""
        self._queries = self._draw_queries([len(sample.ids_L) for sample in samples])
        scorer = Scorer(self.tap, self.context.layout, self.settings.measure, samples)
        self._before = [
            scorer.rows(sample, self._measured_queries(scorer, sample, query_R))[0]
            for sample, query_R in zip(samples, self._queries)
        ]

    def after_task(self, name: str, samples: list[ReplaySample]) -> MemoryTask:
        """Scores the heads, chooses those to keep, and stores this model's rows and logits with the samples."""
        if not samples:
            return MemoryTask(name, [])
        scorer = Scorer(self.tap, self.context.layout, self.settings.measure, samples)
        sensitivity_NH = scorer.sensitivity(samples, keep_gradients=self.settings.gradient_leak)
        measured = [self._measured_queries(scorer, s, q) for s, q in zip(samples, self._queries)]
        passes = [scorer.rows(sample, query_R) for sample, query_R in zip(samples, measured)]
        forgettability_NH = scorer.forgettability(self._before, [rows for rows, _ in passes], measured)
        self._importance = self._importance.add(sensitivity_NH, forgettability_NH)
        self._before = []

        heads = self._choose_heads()
        kept = []
        for sample, query_R, (rows, logits_LV) in zip(samples, self._queries, passes):
            start, length = scorer.offset(sample), len(sample.ids_L)
            # Under the padded measure with all queries, the rows also cover the padding, which is not kept.
            first = start if rows and next(iter(rows.values())).shape[1] > len(query_R) else 0
            own_rows = {
                layer: rows[layer][chosen, first : first + len(query_R), start : start + length]
                for layer, chosen in heads.items()
            }
            logits = take_logits(logits_LV[start : start + length], sample, self.settings)
            kept.append(replace(sample, logits=logits, attention=AttentionSignal(query_R, own_rows)))
        return MemoryTask(name, kept, heads)

    def _draw_queries(self, lengths: list[int]) -> list[Tensor]:
        generator = task_generator(self.context.seed)
        budget, replacement = self.settings.query_budget, self.settings.query_replacement
        queries = []
        for length in lengths:
            # Only a draw with replacement can give more queries than the sample has tokens; null is all, in order.
            beyond = budget is None or (replacement and isinstance(budget, int))
            count = budget if beyond else resolve_budget("method.query_budget", budget, length, lambda _: None)
            queries.append(draw_queries(length, None if count is None else int(count), generator, replacement))
        return queries

    def _measured_queries(self, scorer: Scorer, sample: ReplaySample, query_R: Tensor) -> Tensor:
        """Where F is measured: at the stored queries; the official code with all queries measures the padding too."""
        if self.settings.measure == "padded" and self.settings.query_budget is None:
            return torch.arange(scorer.padded)
        return query_R + scorer.offset(sample)

    def _choose_heads(self) -> dict[int, list[int]]:
        settings, heads, warn = self.settings, self.tap.heads, self.context.warn
        layer_budget = resolve_budget("method.layer_budget", settings.layer_budget, len(heads), warn)
        head_budget = resolve_budget("method.head_budget", settings.head_budget, sum(heads.values()), warn)
        if settings.heads == "all":
            return all_heads(heads)
        if settings.heads == "random":
            return random_heads(heads, layer_budget, head_budget, task_generator(self.context.seed + 1))
        scores_NH = {
            "importance": self._importance.scores(settings.importance_rule),
            "sensitivity": self._importance.sensitivity_NH,
            "forgettability": self._importance.forgettability_NH,
        }[settings.heads]
        # General data in front of the first task has seen no training, so nothing has moved and F is zero everywhere.
        if not scores_NH.any():
            scores_NH = self._importance.sensitivity_NH
        return select_heads(scores_NH, self._importance.layers, layer_budget, head_budget)

    def close(self) -> None:
        """Takes the tap off the model."""
        self.tap.close()

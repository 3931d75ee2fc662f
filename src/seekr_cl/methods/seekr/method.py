"""SEEKR: replay with the earlier model's logits and with the attention of the heads that matter most.

One step is ``replay_loss``, one task's end is ``after_task``; what they use is ``attention/`` (rows and their
divergence), ``heads/`` (importance, budgets) and ``scoring`` (what is measured on the kept samples).

Shapes: B batch, L padded length, V vocabulary, M chosen heads of a layer, R queries,
P (sample, head) pairs of a layer in a batch, N tappable layers, H query heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seekr_cl.attention import AttentionCall, AttentionTap, DistillRows, RowIndex
from seekr_cl.attention.features import (
    DistillOutputs,
    DistillProjected,
    DistillRelations,
    DistillValues,
    value_call,
)
from seekr_cl.attention.rows import attention_rows
from seekr_cl.attention.stored import (
    StoredDense,
    StoredFactors,
    StoredOutputs,
    StoredRows,
    StoredSignal,
    StoredTopK,
    join_layers,
    stored_from,
)
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.heads import HeadImportance, all_heads, draw_queries, random_heads, resolve_budget, select_heads
from seekr_cl.memory import AttentionSignal, LogitSignal, MemoryTask, ReplaySample
from seekr_cl.memory.signals import ROWS, Signal
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult, task_generator
from seekr_cl.methods.common.adapter_teacher import kept_adapter, make_teacher, require_adapter
from seekr_cl.methods.common.gathering import collect_samples
from seekr_cl.methods.common.logit_distillation import (
    label_and_logit_terms,
    predicting_positions,
    require_all_logits,
    take_logits,
)
from seekr_cl.methods.common.teachers import StoredTeacher
from seekr_cl.methods.seekr.projections import Projections
from seekr_cl.methods.seekr.scoring import Encode, Scored, Scorer, mean_scores, measures_of_all
from seekr_cl.methods.seekr.seekr_settings import SeekrSettings

TARGETS: dict[str, tuple[type[DistillRows], str]] = {
    "attention": (DistillRows, "attention"),
    "values": (DistillValues, "values"),
    "hidden": (DistillOutputs, "outputs"),
    "relations": (DistillRelations, "outputs"),
}
"""What can be held at the chosen heads and queries: how it is compared, and what is stored for it."""
_SUMS = ("sensitivity_NH", "forgettability_NH", "product_NH")


class Seekr(Method):
    """L = L_task + lambda1 L_replay + (1 - lambda1) L_ld + lambda2 L_seekr (eq. 13)."""

    name = "seekr"
    paper = Paper(
        "SEEKR: Selective Attention-Guided Knowledge Retention for Continual Learning of Large Language Models",
        "He et al., EMNLP 2024",
        "https://arxiv.org/abs/2411.06171",
    )
    Settings = SeekrSettings
    memory = "replayed"
    weight_access = "none"
    settings: SeekrSettings

    def __init__(self, settings: SeekrSettings, context: Context) -> None:
        super().__init__(settings, context)
        if any(config.is_prompt_learning for config in getattr(context.model, "peft_config", {}).values()):
            raise ConfigError(
                "peft: a prompt's tokens shift every attention row, and seekr distils these; use lora, or method derpp"
            )
        # Before the tap is put on: what it refuses must leave the model as it was.
        require_adapter(context, settings)
        self.tap = AttentionTap(context.model)
        self.teacher = StoredTeacher(context.layout, self._stored, settings.attention_reduction)
        former = context.importance
        if former is not None and former.layers != tuple(self.tap.heads):
            raise ConfigError("memory: its head importance is of a model with other attention layers")
        self._importance = former or HeadImportance.zeros(self.tap.heads)
        if 0 in (settings.layer_budget, settings.head_budget) and settings.heads != "all" and settings.lambda2 != 0:
            context.warn("method.layer_budget or head_budget is 0: no head is chosen, attention is not kept")
        # Under "auto" the trainer replaces this starting value as soon as it has measured the gradients.
        self._lambda2 = 1.0 if isinstance(settings.lambda2, str) else settings.lambda2
        self._share = settings.attention_share if settings.steers else None
        self._queries: list[Tensor] = []
        self._before: dict[int, dict[int, StoredRows]] = {}
        self._batches: list[list[int]] = []
        self._old: list[MemoryTask] = []
        self._projections: Projections | None = None
        self._saved_projections: dict[str, Tensor] = {}

    # One step -------------------------------------------------------------------------------------------------

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """New examples are plain fine-tuning: nobody looks at their attention."""
        self.tap.action = None
        return super().new_task_loss(model, batch)

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Labels, logits and attention of the old samples; the new model runs its own fast attention kernel."""
        answer = self.teacher.answer(batch)
        if self._projections is None:
            distil = TARGETS[self.settings.target][0](answer.rows, self.settings.attention_eps)
        else:
            distil = DistillProjected(answer.rows, self._projections.maps, batch["task_B"])
            self._projections.note(batch, distil)
        # Gradient checkpointing runs the layers again in the backward pass, so the action stays until the next step.
        self.tap.action = distil
        terms = label_and_logit_terms(model, batch, answer.logits, self.settings)
        losses = list(distil.losses().values())
        attention = torch.stack([torch.zeros((), device=batch["labels"].device), *losses]).sum()
        attention = attention / max(1, len(losses) if self.settings.attention_reduction == "layer_mean" else 1)
        return terms | {"attention": LossTerm(attention, self._lambda2, grad_norm_share=self._share)}

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """Every sample needs logits; without rows it is only left out of the attention term."""
        require_all_logits(tasks)
        self.teacher = make_teacher(
            self.context, self.settings, tasks, self.tap, self._stored, self.settings.attention_reduction
        )
        samples = sum(task.totals.samples for task in tasks)
        # All samples of a task have the same kind of signal, so one of each says it.
        without = samples - sum(task.totals.attention for task in tasks if _kind(task) == self._stored)
        if without and self.settings.lambda2 != 0:
            self.context.warn(
                f"{without} of {samples} samples in the memory have no {self._stored} rows (they were kept by another "
                "method or for another target), so the attention term leaves them out"
            )
        if self.settings.projection != "none":
            self._old = list(tasks)
            heads = [task.heads if _kind(task) == self._stored else {} for task in tasks]
            settings, device = self.settings, self.context.model.device
            self._projections = Projections(
                heads, self.tap.sizes, settings.projection, settings.projection_rate, self.context.seed + 2, device
            )
            if self._saved_projections:
                self._projections.load_state_dict(self._saved_projections)
        return tasks

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """Logits, and the rows of all layers with their places and weights in this batch, or what is asked."""
        extras = self.teacher.collate(picked, padded)
        if self._projections is not None:
            numbers = {id(task): number for number, task in enumerate(self._old)}
            extras["task_B"] = torch.tensor([numbers[id(task)] for task, _ in picked])
        return extras

    def after_step(self, model: nn.Module) -> None:
        """A step of the matrices that are learned beside the model."""
        if self._projections is not None:
            self._projections.step()

    @property
    def _stored(self) -> str:
        """What is kept for the target."""
        return TARGETS[self.settings.target][1]

    # One task's ends ------------------------------------------------------------------------------------------

    def before_task(self, samples: list[ReplaySample]) -> None:
        """Draws each kept sample's queries and records the attention there, where heads are scored."""
        allowed = [self._query_places(sample) for sample in samples]
        drawn = self._draw_queries([len(place_A) for place_A in allowed])
        self._queries = [place_A[draw_R] for place_A, draw_R in zip(allowed, drawn)]
        scorer = self._scorer(samples)
        self._before, self._batches = {}, scorer.batches if self.settings.scores_heads else []
        for number, counts in collectives.shard_indices(len(self._batches)):
            places = self._batches[number]
            batch = [samples[place] for place in places]
            measured = self._measured_queries(scorer, samples, places)
            rows = scorer.before(batch, measured, self._encode_former)
            if counts:
                self._before |= dict(zip(places, rows))

    def _scorer(self, samples: list[ReplaySample]) -> Scorer:
        return Scorer(self.tap, self.context.layout, self.settings.measure, samples, self.context.batch_size)

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Scores the heads, chooses those to keep, and stores this model's rows and logits, or its adapter."""
        self._projections = None
        if not samples:
            return TaskResult(MemoryTask(name, []), self._importance)
        scorer = self._scorer(samples)
        teacher = kept_adapter(self.context, self.settings)
        scored: dict[int, Scored] = {}
        logits: dict[int, LogitSignal] = {}
        for number, counts in collectives.shard_indices(len(scorer.batches)):
            places = scorer.batches[number]
            batch = [samples[place] for place in places]
            own = [self._own(scorer, place, one) for place, one in zip(places, batch)]
            encodes = own if teacher is None else None
            measured = self._measured_queries(scorer, samples, places)
            if self.settings.scores_heads:
                former = [self._before[place] for place in places] if counts else None
                found = scorer.after(batch, measured, former, encodes, counts and self.settings.gradient_leak)
            else:
                found = scorer.kept(batch, measured, encodes)
            for place, (one, said) in zip(places, found if counts else ()):
                scored[place] = one
                if teacher is None:
                    logits[place] = take_logits(said, samples[place], self.settings, self.context.signal_dtype)
                del said
            # What their logits are made of is not held while the next ones are made.
            del found
        if self.settings.scores_heads:
            self._importance = self._importance.add(*mean_scores(measures_of_all(scored, len(samples))))
        self._before = {}

        heads, kept = self._choose_heads(), dict[int, ReplaySample]()
        for place, one in scored.items():
            query_R = self._queries[place]
            signals: dict[str, Signal] = {} if teacher is not None else {"logits": logits[place]}
            if heads and teacher is not None:
                signals["attention"] = AttentionSignal(query_R, None)
            elif heads:
                rows = [one.rows[layer].pick(chosen) for layer, chosen in sorted(heads.items())]
                signals[self._stored] = ROWS[self._stored](query_R, join_layers(rows))
            kept[place] = replace(samples[place], signals=signals)
        task = MemoryTask(name, collect_samples(kept, len(samples)), heads, teacher=teacher)
        return TaskResult(task, self._importance)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The drawn queries, rows from before the task, BFP's matrices, and the importance, of general data too."""
        tensors = {f"query/{number}": query_R for number, query_R in enumerate(self._queries)}
        before = {
            place: {
                f"{layer}/{name}": tensor for layer, rows in layers.items() for name, tensor in rows.tensors().items()
            }
            for place, layers in self._before.items()
        }
        count = sum(collectives.all_gather_object(len(before)))
        for place, layers in enumerate(collectives.gather_sharded(before, count)):
            tensors |= {f"before/{place}/{name}": tensor for name, tensor in layers.items()}
        for name in _SUMS:
            tensors[f"importance/{name}"] = getattr(self._importance, name)
        if self._projections is not None:
            tensors |= {f"projection/{name}": tensor for name, tensor in self._projections.state_dict().items()}
        more = {"before": count, "batches": self._batches, "layers": list(self.tap.heads)}
        return tensors, {"queries": len(self._queries)} | more

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""

        def rows(prefix: str) -> Any:
            return stored_from({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})

        self._queries = [tensors[f"query/{number}"] for number in range(content["queries"])]
        self._batches = content.get("batches", [])
        mine = [self._batches[turn] for turn, counts in collectives.shard_indices(len(self._batches)) if counts]
        # Former versions had samples go one by one, and gave them to other processes than now: then each holds all.
        held = [place for batch in mine for place in batch] if self._batches else range(content["before"])
        self._before = {
            place: {layer: rows(f"before/{place}/{layer}/") for layer in content["layers"]}
            for place in (held if content["before"] else ())
        }
        sums = {name: tensors[f"importance/{name}"] for name in _SUMS}
        self._importance = HeadImportance(self._importance.layers, **sums)
        prefix = "projection/"
        self._saved_projections = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    def _encode_former(self, call: AttentionCall, index: RowIndex, rows_HRL: Tensor) -> StoredRows:
        """What is held of all heads' rows while a task is trained: enough to see how far each head moves."""
        return self._encode(call, index, rows_HRL, "bucket")

    def _own(self, scorer: Scorer, place: int, sample: ReplaySample) -> Encode:
        return partial(self._encode_own, scorer.offset(sample), len(sample.ids_L), self._queries[place])

    def _encode_own(
        self, start: int, length: int, query_R: Tensor, call: AttentionCall, index: RowIndex, rows_HRL: Tensor
    ) -> StoredSignal:
        """What may be kept of all heads for replay: of the sample's own tokens, without the padding."""
        # Under the padded measure with all queries, the rows also cover the padding, which is not kept.
        first = start if rows_HRL.shape[1] > len(query_R) else 0
        own = slice(first, first + len(query_R))
        index, rows_HRL = index.of_queries(own), rows_HRL[:, own, start : start + length]
        if self._stored == "outputs":
            return StoredOutputs.encode(call, index, rows_HRL, self.context.signal_dtype, start, length).to("cpu")
        if self._stored == "values":
            call = value_call(call)
            rows_HRL = attention_rows(call, index)[..., start : start + length]
        return self._encode(call, index, rows_HRL, self.settings.attention_tail, start, length)

    def _encode(
        self,
        call: AttentionCall,
        index: RowIndex,
        rows_HRL: Tensor,
        tail: str,
        start: int = 0,
        length: int | None = None,
    ) -> StoredRows:
        dtype = self.context.signal_dtype
        if self.settings.attention_signal == "factors":
            return StoredFactors.encode(call, index, dtype, start, length).to("cpu")
        if self.settings.attention_signal == "dense":
            return StoredDense.encode(rows_HRL, dtype).to("cpu")
        return StoredTopK.encode(rows_HRL, self.settings.attention_top_k, dtype, tail).to("cpu")

    def _query_places(self, sample: ReplaySample) -> Tensor:
        """The positions [A] among which a sample's queries are drawn."""
        place_A = predicting_positions(sample) if self.settings.query_positions == "answer" else torch.empty(0)
        # An answer of one token without a prompt is predicted by nothing.
        return place_A if len(place_A) else torch.arange(len(sample.ids_L))

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

    def _measured_queries(self, scorer: Scorer, samples: Sequence[ReplaySample], places: Sequence[int]) -> list[Tensor]:
        """Where F is measured: at the stored queries; the official code with all queries measures the padding too."""
        if self.settings.measure == "padded" and self.settings.query_budget is None:
            return [torch.arange(scorer.padded)] * len(places)
        return [self._queries[place] + scorer.offset(samples[place]) for place in places]

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


def _kind(task: MemoryTask) -> str | None:
    """What the rows of a task's samples are of, without reading more than one."""
    signals = task.samples[0].signals if task.totals.attention else {}
    return next((kind for kind in ROWS if kind in signals), None)

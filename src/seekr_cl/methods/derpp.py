"""DER++ in its KL form: old samples are trained on with labels and the outputs of the model after their task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from seekr_cl.distributed import collectives
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult
from seekr_cl.methods.common.adapter_teacher import kept_adapter, make_teacher, require_adapter
from seekr_cl.methods.common.gathering import collect_samples
from seekr_cl.methods.common.logit_distillation import (
    LogitSettings,
    first_position,
    label_and_logit_terms,
    require_all_logits,
    take_logits,
)
from seekr_cl.methods.common.sample_passes import SamplePass, similar_batches
from seekr_cl.methods.common.teachers import StoredTeacher


class DERpp(Method):
    """L = L_task + lambda1 L_replay + (1 - lambda1) L_ld (eq. 13 of SEEKR's paper without attention).

    This is what SEEKR's paper and its tables call DER++: KL of whole distributions from the model *after* a task, one
    draw for both terms. Buzzega et al. take the squared distance of logits seen *during* training and two draws with
    weights alpha and beta of their own: that is ``derpp_mse``.
    """

    name = "derpp"
    paper = Paper(
        "Dark Experience for General Continual Learning: a Strong, Simple Baseline",
        "Buzzega et al., 2020",
        "https://arxiv.org/abs/2004.07211",
    )
    Settings = LogitSettings
    memory = "replayed"

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        require_adapter(context, settings)
        self.teacher = StoredTeacher(context.layout)

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """Every sample needs logits, or its task a teacher."""
        require_all_logits(tasks)
        self.teacher = make_teacher(self.context, self.settings, tasks)
        return tasks

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """The stored logits of the batch, or what adapters are asked."""
        return self.teacher.collate(picked, padded)

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Labels and logits of the old samples."""
        answer = self.teacher.answer(batch)
        return label_and_logit_terms(model, batch, answer.logits, self.settings)

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Stores this model's answer-position logits with the samples, or what its adapter is now."""
        teacher = kept_adapter(self.context, self.settings)
        if teacher is not None:
            return TaskResult(MemoryTask(name, samples, teacher=teacher))
        context, kept = self.context, dict[int, ReplaySample]()
        batches = similar_batches([len(sample.ids_L) for sample in samples], context.model)
        for number, counts in collectives.shard_indices(len(batches)):
            batch = [samples[place] for place in batches[number]]
            with torch.no_grad():
                passed = SamplePass(context.model, [one.ids_L for one in batch], list(map(first_position, batch)))
            for row, (place, sample) in enumerate(zip(batches[number], batch)) if counts else ():
                signal = take_logits(passed.said(row), sample, self.settings, context.signal_dtype)
                kept[place] = replace(sample, signals={"logits": signal})
        return TaskResult(MemoryTask(name, collect_samples(kept, len(samples))))

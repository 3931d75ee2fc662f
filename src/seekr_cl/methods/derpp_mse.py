"""DER++ as its paper has it: logits seen during training are held by their squared distance, labels of a second draw.

Shapes: A answer positions of a sample, V vocabulary, B batch, L padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.memory import LogitSignal, MemoryTask, ReplaySample, TaskSamples
from seekr_cl.methods.answers import predicting
from seekr_cl.methods.base import (
    Batch,
    Context,
    LossTerm,
    Method,
    TaskResult,
    ask,
    label_term,
    task_generator,
    token_values,
    weighted_term,
)
from seekr_cl.methods.common.gathering import collect_samples
from seekr_cl.methods.common.logit_distillation import LogitSettings, chunks, first_position, logit_positions
from seekr_cl.methods.common.sample_passes import SamplePass, similar_batches
from seekr_cl.methods.derpp import DERpp
from seekr_cl.settings import Ge, Hint, Settings
from seekr_cl.tasks.collate import collate

_POSITIONS = LogitSettings()


@dataclass(frozen=True, kw_only=True)
class DERppMSESettings(Settings):
    """Settings of DER++ with the paper's own distance.

    Attributes:
        alpha: weight of the distance from the logits.
        beta: weight of the labels of the second draw.
        distance: ``mean`` of the squared differences over the vocabulary, as in the official code, or their ``sum``,
            the paper's squared norm. A vocabulary has some thousand times more entries than the paper's classes, so
            under ``mean`` the distance pulls that much less; the log's ``share_logits`` shows it.
    """

    alpha: Annotated[float, Ge(0), Hint("0 switches the term off")] = 0.5
    beta: Annotated[float, Ge(0), Hint("0 switches the term off")] = 0.5
    distance: Literal["mean", "sum"] = "mean"


class DERppMSE(Method):
    """L = L_task + alpha |z - h(x)|^2 + beta CE(y', f(x')), (x, z) and (x', y') two draws from the memory (eq. 6).

    z are the logits that the model gave at the answer's positions *while it learned* the sample's task, in a step drawn
    at random from those that saw it: what a reservoir over the stream of batches holds of it. ``derpp`` is the other
    form, in the papers of SEEKR and others: KL from the model after the task, one draw for both terms.

    Deviations from the official code: a task's samples come back from the next task on, and ``replay.ratio`` of every
    task is kept, not one reservoir of a fixed size over all; the second draw is a random partner for each sample of the
    first, drawn anew for every task; general data, which is not learned, has the logits of the base model.
    """

    name = "derpp_mse"
    paper = DERpp.paper
    Settings = DERppMSESettings
    memory = "replayed"
    weight_access = "none"
    replay_defaults: ClassVar = {"every": 1, "step": "joint"}
    settings: DERppMSESettings

    def __init__(self, settings: DERppMSESettings, context: Context) -> None:
        super().__init__(settings, context)
        self._old = TaskSamples([])
        self._partners: dict[tuple[str, str], int] = {}
        self._places: dict[tuple[int, ...], int] = {}
        self._kept: list[ReplaySample] = []
        self._steps = 0
        # Of this step, and the ones that are kept: by place among the samples, with the number they were drawn by.
        self._seen: dict[int, Tensor] = {}
        self._drawn: dict[int, tuple[float, Tensor]] = {}

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """What the memory holds, noted for the second draw; every sample needs logits, not probabilities."""
        for task in tasks:
            signal = task.samples[0].logits if len(task.samples) else None
            if len(task.samples) and (signal is None or signal.logits_AV is None):
                raise ConfigError(
                    f"memory: the samples of '{task.name}' have no teacher logits of {self.name} (they were kept by "
                    "another method); use that method again or begin a new memory"
                )
        self._old = TaskSamples(tasks)
        return tasks

    def before_task(self, samples: list[ReplaySample]) -> None:
        """Notes which examples are kept, so that their logits are taken when training sees them."""
        self._kept = samples
        self._places = {tuple(sample.ids_L.tolist()): place for place, sample in enumerate(samples)}
        self._seen, self._drawn, self._steps = {}, {}, 0

    # A step ---------------------------------------------------------------------------------------------------

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss; what the model says of samples that are kept is looked at."""
        labels_BL, length = batch["labels"], batch["labels"].shape[1]
        label_BL, keep_BL = predicting(labels_BL), predicting(labels_BL)
        kept: dict[int, Tensor] = {}
        if not batch.get("filler", False):
            for row, (ids_L, real_L) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool())):
                place = self._places.get(tuple(ids_L[real_L].tolist()))
                if place is not None:
                    offset = self.context.layout.offset(int(real_L.sum()), length)
                    position_A = logit_positions(self._kept[place], _POSITIONS) + offset
                    kept[place] = row * length + position_A.to(ids_L.device)
                    keep_BL.view(-1)[kept[place]] = True
        seen: dict[int, list[Tensor]] = {place: [] for place in kept}

        def values(logits_CV: Tensor, place_C: Tensor) -> list[Tensor]:
            for place, own_A in kept.items():
                here_A = own_A[torch.isin(own_A, place_C)]
                seen[place].append(logits_CV[torch.searchsorted(place_C, here_A)].detach().cpu())
            return token_values(self.context.task_loss, logits_CV, place_C, labels_BL)

        labelled_N = label_BL.flatten()[keep_BL.flatten()]
        said = [value_N[labelled_N] for value_N in ask(model, batch, keep_BL, values)]
        self._seen |= {place: torch.cat(parts) for place, parts in seen.items()}
        return {"task": weighted_term(self.context.task_loss, batch, said)}

    def after_step(self, model: nn.Module) -> None:
        """Keeps what was seen where its number is the highest so far: each step that saw a sample is as likely."""
        self._steps += 1
        for place, logits_AV in self._seen.items():
            generator = task_generator(self.context.seed + 7919 * self._steps + place)
            number = float(torch.rand((), generator=generator, dtype=torch.float64))
            if place not in self._drawn or number > self._drawn[place][0]:
                self._drawn[place] = number, logits_AV.float()
        self._seen = {}

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """Logits of the first draw, and the second draw."""
        layout = self.context.layout
        kept = [
            (one.logits, row * padded + layout.offset(len(one.ids_L), padded))
            for row, (_, one) in enumerate(picked)
            if one.logits is not None
        ]
        raw = [signal.logits_AV for signal, _ in kept]
        logits: Batch = {
            "position": pad_sequence([signal.position_A + offset for signal, offset in kept], batch_first=True),
            "real": pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in raw if one is not None], True),
            "value": pad_sequence([one for one in raw if one is not None], batch_first=True),
        }
        others = [self._partner(task, sample) for task, sample in picked]
        second = [one.encoded for one in others]
        return {"logits": logits, "second": collate(second, layout.pad_id, layout.side, layout.multiple)}

    def _partner(self, task: MemoryTask, sample: ReplaySample) -> ReplaySample:
        if not self._partners:
            order = torch.randperm(len(self._old), generator=task_generator(self.context.seed)).tolist()
            keys = [(one.name, own.sample_id) for one, own in self._old]
            self._partners = dict(zip(keys, order))
        return self._old[self._partners[task.name, sample.sample_id]][1]

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The distance from the first draw's logits and the second draw's labels."""
        terms: dict[str, LossTerm] = {}
        if self.settings.alpha:
            signals = batch["logits"]
            real_BA, place_BA = signals["real"], signals["position"]
            keep_BL = torch.zeros_like(batch["labels"], dtype=torch.bool)
            keep_BL.view(-1)[place_BA[real_BA]] = True

            def sums(logits_CV: Tensor, place_C: Tensor) -> tuple[Tensor]:
                here_BA = real_BA & torch.isin(place_BA, place_C)
                now_NV = logits_CV[torch.searchsorted(place_C, place_BA[here_BA])].float()
                square_NV = (now_NV - signals["value"][here_BA].to(now_NV.device)).square()
                return ((square_NV.mean(-1) if self.settings.distance == "mean" else square_NV.sum(-1)).sum(),)

            (total,) = ask(model, batch, keep_BL, sums)
            terms["logits"] = LossTerm(total / real_BA.sum().clamp(min=1), self.settings.alpha, real_BA.sum())
        if self.settings.beta:
            second = {name: tensor.to(batch["input_ids"].device) for name, tensor in batch["second"].items()}
            terms["replay"] = label_term(model, second, self.settings.beta)
        return terms

    # The end of a task ----------------------------------------------------------------------------------------

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Puts the logits that were drawn beside the samples; those that no step saw are asked for now."""
        drawn = self._all_drawn() if name == self.context.task else {}
        said = {place: logits_AV for place, (_, logits_AV) in drawn.items()}
        # The same in all processes, as the passes of a sharded model have to be.
        missing = [place for place in range(len(samples)) if place not in said]
        batches = similar_batches([len(samples[place].ids_L) for place in missing], self.context.model)
        own = [place for place, counts in collectives.shard_indices(len(samples)) if counts and place in said]
        for number, counts in collectives.shard_indices(len(batches)):
            places = [missing[at] for at in batches[number]]
            asked = self._asked([samples[place] for place in places])
            if counts:
                said |= zip(places, asked)
                own += places
        kept: dict[int, ReplaySample] = {}
        for place in own:
            position_A = logit_positions(samples[place], _POSITIONS)
            signal = LogitSignal.of_logits(position_A, said[place], self.context.signal_dtype)
            kept[place] = replace(samples[place], signals={"logits": signal})
        return TaskResult(MemoryTask(name, collect_samples(kept, len(samples))))

    @torch.no_grad()
    def _asked(self, samples: Sequence[ReplaySample]) -> list[Tensor]:
        """The logits [A, V] of samples that go together, made of few positions at a time and kept on the CPU."""
        asked = SamplePass(self.context.model, [one.ids_L for one in samples], list(map(first_position, samples)))
        found = []
        for row, sample in enumerate(samples):
            said, position_A = asked.said(row), logit_positions(sample, _POSITIONS)
            parts = chunks(position_A, said(position_A[:1]).shape[-1])
            found.append(torch.cat([said(part_C).cpu() for part_C in parts]))
        return found

    def _all_drawn(self) -> dict[int, tuple[float, Tensor]]:
        """By place what has the highest number in any process, the same in all of them."""
        found: dict[int, tuple[float, Tensor]] = {}
        numbers = collectives.all_gather_object({str(place): number for place, (number, _) in self._drawn.items()})
        tensors = collectives.all_gather_tensors(
            {str(place): logits_AV for place, (_, logits_AV) in self._drawn.items()}
        )
        for own, logits in zip(numbers, tensors, strict=True):
            for place, number in own.items():
                if int(place) not in found or number > found[int(place)][0]:
                    found[int(place)] = number, logits[place]
        return found

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was drawn so far and which samples it is about."""
        drawn = self._all_drawn()
        tensors = {f"drawn/{place}": logits_AV for place, (_, logits_AV) in drawn.items()}
        tensors |= {f"ids/{place}": sample.ids_L for place, sample in enumerate(self._kept)}
        starts = [(sample.completion_start, sample.learnt) for sample in self._kept]
        numbers = {str(place): number for place, (number, _) in drawn.items()}
        return tensors, {"steps": self._steps, "numbers": numbers, "starts": starts}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""
        kept = []
        for number, (start, learnt) in enumerate(content["starts"]):
            spans = None if learnt is None else tuple((begin, end) for begin, end in learnt)
            kept.append(ReplaySample("", "", tensors[f"ids/{number}"], start, learnt=spans))
        self.before_task(kept)
        self._steps = content["steps"]
        self._drawn = {int(n): (number, tensors[f"drawn/{n}"]) for n, number in content["numbers"].items()}

"""What the earlier model says of a replay batch: read from the memory, or asked of the adapter the task ended with.

A task's samples either carry signals (``teacher: stored``), or the task keeps the trained weights of the adapter it
ended with (``teacher: adapter``). Those are asked in one more forward pass without gradient through the model that is
being trained, with the old weights in the adapter's place; nothing of the answer is rounded or left out. Which of the
two a task has was decided when it was learnt, so one batch may hold both.

Shapes: B batch, G samples of one task in it, L padded length, A answer positions, V vocabulary, P (sample, head) pairs,
R queries.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seekr_cl import ranks
from seekr_cl.attention import AttentionTap, RecordRows, RowTarget
from seekr_cl.attention.teachers import DenseRows
from seekr_cl.distributed.dtensor import borrowed, is_like, is_sharded, reshard, whole
from seekr_cl.errors import ConfigError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.memory.method_state import StoredTensors
from seekr_cl.methods.base import Batch, Context, LossTerm
from seekr_cl.methods.common.attention_targets import placed_rows, row_targets
from seekr_cl.methods.common.gradients import check_names, placed, trained
from seekr_cl.methods.common.logit_distillation import (
    LogitSettings,
    can_keep,
    distil_logits,
    logit_positions,
    pad_logits,
)
from seekr_cl.methods.losses import causal_lm_loss, count_labels

HELD = 4
"""Adapters that stay on the device between batches."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one adapter said of its samples.

    Attributes:
        row_G: the samples' places in the batch.
        logits: as ``pad_logits`` gives them, with whole distributions.
        targets: ``{layer: its rows}``.
    """

    row_G: Tensor
    logits: Batch
    targets: dict[int, RowTarget]


class Teachers:
    """The teachers of all tasks that are replayed.

    Args:
        context: model and layout.
        settings: the method's.
        reduction: how its rows are weighted.
        of: what of the layers it distils; adapters are asked for ``attention`` rows only.

    Attributes:
        tap: set by a method that distils attention too.

    Raises:
        ConfigError: if adapters are to be kept and the model has none.
    """

    def __init__(
        self, context: Context, settings: LogitSettings, reduction: str = "sample_mean", of: str = "attention"
    ) -> None:
        if settings.teacher == "adapter" and not hasattr(context.model, "peft_config"):
            raise ConfigError("method.teacher: 'adapter' needs an adapter to keep; set peft (lora), or teacher: stored")
        self.context, self.settings, self.reduction, self.of = context, settings, reduction, of
        self.tap: AttentionTap | None = None
        self._tasks: list[MemoryTask] = []
        self._held: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def replay(self, tasks: Sequence[MemoryTask]) -> None:
        """Says what is replayed.

        Raises:
            MemoryFormatError: if a task's adapter is not of the weights that are trained now.
        """
        self._tasks = list(tasks)
        for number, task in enumerate(self._tasks):
            if task.teacher is not None and len(task.samples):
                self._weights(number)

    def keep(self) -> dict[str, Tensor] | None:
        """What the memory keeps of the model as it is now, to be asked later; ``None`` under ``teacher: stored``."""
        if self.settings.teacher == "stored":
            return None
        return {name: whole(weight).detach().cpu().clone() for name, weight in trained(self.context.model).items()}

    # A batch, in the data loader ------------------------------------------------------------------------------

    def extras(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """Stored signals as they are, and for each adapter what it will be asked."""
        layout = self.context.layout
        stored = [number for number, (task, _) in enumerate(picked) if task.teacher is None]
        batch: Batch = {"logits": None}
        if stored:
            batch["logits"] = pad_logits([picked[number][1] for number in stored], layout, padded)
        if self.tap is not None:
            batch["attention"] = row_targets(picked, layout, padded, self.reduction, self.of)
        if len(stored) < len(picked):
            groups: dict[int, list[int]] = {}
            for number, (task, _) in enumerate(picked):
                if task.teacher is not None:
                    groups.setdefault(self._number(task), []).append(number)
            batch["stored_G"] = torch.tensor(stored, dtype=torch.long)
            batch["asked"] = [self._question(number, rows, picked, padded) for number, rows in groups.items()]
        return batch

    def _number(self, task: MemoryTask) -> int:
        return next(number for number, one in enumerate(self._tasks) if one is task)

    def _question(
        self, number: int, rows: list[int], picked: list[tuple[MemoryTask, ReplaySample]], padded: int
    ) -> dict[str, Any]:
        samples, layout = [picked[row][1] for row in rows], self.context.layout
        positions = [logit_positions(one, self.settings) + layout.offset(len(one.ids_L), padded) for one in samples]
        question: dict[str, Any] = {
            "task": number,
            "first": min((int(one.min()) for one in positions if len(one)), default=padded - 1),
            "row_G": torch.tensor(rows),
            "position": pad_sequence(positions, batch_first=True),
            "real": pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in positions], batch_first=True),
            "rows": {},
        }
        if self.tap is not None and self.of == "attention":
            question["rows"] = placed_rows(
                [picked[row] for row in rows], rows, layout, padded, len(picked), self.reduction
            )
        return question

    # A step ---------------------------------------------------------------------------------------------------

    def ask(self, batch: Batch) -> list[Answer]:
        """The answers of all adapters that the batch asks, before the student's own forward pass."""
        # What stands whole after the last pass would not look sharded.
        reshard(self.context.model)
        questions = {question["task"]: question for question in batch.get("asked", ())}
        answers = []
        for number in self._asked_anywhere(list(questions)):
            if number in questions:
                answers.append(self._ask(batch, questions[number]))
            else:
                self._pass(number, batch, torch.zeros(1, dtype=torch.long, device=self.context.model.device), 1, None)
        return answers

    def _asked_anywhere(self, own: list[int]) -> list[int]:
        """The tasks whose adapters are asked, by this process or, as a sharded model's passes need all, by any."""
        if all(task.teacher is None for task in self._tasks) or not self._sharded:
            return own
        asked = torch.zeros(len(self._tasks))
        asked[own] = 1
        return ranks.total(asked).nonzero().flatten().tolist()

    @property
    def _sharded(self) -> bool:
        return any(map(is_sharded, trained(self.context.model).values()))

    def _ask(self, batch: Batch, question: Mapping[str, Any]) -> Answer:
        row_G = question["row_G"]
        record = RecordRows({layer: own for layer, (own, _, _) in question["rows"].items()})
        length = batch["input_ids"].shape[1]
        logits_GLV = self._pass(question["task"], batch, row_G, length - question["first"], record)
        # A prompt of the adapter's own stands before the first token.
        logits_GLV = logits_GLV[:, question["first"] - length :]
        position_GA = question["position"]
        # Padding indices are arbitrary.
        from_GA = (position_GA - question["first"]).clamp(min=0)
        sample_G1 = torch.arange(len(row_G), device=position_GA.device)[:, None]
        prob_GAV = logits_GLV[sample_G1, from_GA].float().softmax(-1)
        none_GA = torch.zeros_like(position_GA, dtype=prob_GAV.dtype)
        logits = {"position": position_GA, "real": question["real"], "prob": prob_GAV, "token": None}
        targets = {
            layer: RowTarget(index, DenseRows(record.rows[layer]), weight_PR)
            for layer, (_, index, weight_PR) in question["rows"].items()
        }
        return Answer(row_G, logits | {"tail": none_GA, "offset": none_GA}, targets)

    def _pass(self, number: int, batch: Batch, row_G: Tensor, last: int, action: RecordRows | None) -> Tensor:
        """Logits of one task's model for some of a batch's rows, of at least the ``last`` positions."""
        model = self.context.model
        given = {name: batch[name][row_G] for name in ("input_ids", "attention_mask")} | {"use_cache": False}
        if can_keep(model):
            given["logits_to_keep"] = last
        former, training = None if self.tap is None else self.tap.action, model.training
        model.eval()
        try:
            if self.tap is not None:
                self.tap.action = action
            with torch.no_grad(), borrowed(model, self._weights(number)):
                return model(**given).logits
        finally:
            model.train(training)
            if self.tap is not None:
                self.tap.action = former

    def label_and_logit_terms(self, logits_BLV: Tensor, batch: Batch, answers: list[Answer]) -> dict[str, LossTerm]:
        """lambda1 L_replay + (1 - lambda1) L_ld of a replay batch (eq. 13), whoever its teachers are."""
        labels_BL, weight = batch["labels"], self.settings.lambda1
        value, count = self._distil(logits_BLV, batch, answers)
        return {
            "replay": LossTerm(causal_lm_loss(logits_BLV, labels_BL), weight, count_labels(labels_BL)),
            "logits": LossTerm(value, 1 - weight, count),
        }

    def _distil(self, logits_BLV: Tensor, batch: Batch, answers: list[Answer]) -> tuple[Tensor, Tensor]:
        """L_ld (eq. 3), the mean over all positions, and how many these are."""
        if not answers:
            return distil_logits(logits_BLV, batch["logits"], self.settings), batch["logits"]["real"].sum()
        parts = [(answer.row_G, answer.logits) for answer in answers]
        if batch["logits"] is not None:
            parts.append((batch["stored_G"], batch["logits"]))
        counts = torch.stack([signals["real"].sum() for _, signals in parts])
        values = torch.stack([distil_logits(logits_BLV[row_G], signals, self.settings) for row_G, signals in parts])
        return (counts * values).sum() / counts.sum().clamp(min=1), counts.sum()

    def targets(self, batch: Batch, answers: list[Answer]) -> dict[int, list[RowTarget]]:
        """Each layer's rows, stored and asked ones."""
        found = {layer: list(targets) for layer, targets in batch["attention"].items()}
        for answer in answers:
            for layer, target in answer.targets.items():
                found.setdefault(layer, []).append(target)
        return found

    def _weights(self, number: int) -> dict[str, Tensor]:
        """One task's adapter on the device, the last few asked for at hand."""
        now = trained(self.context.model)
        held = self._held.get(number)
        # What was read before the model was sharded is whole.
        if held is None or not all(is_like(weight, now[name]) for name, weight in held.items()):
            teacher = self._tasks[number].teacher
            assert teacher is not None
            weights = teacher.unkept() if isinstance(teacher, StoredTensors) else dict(teacher)
            check_names(self.context.model, weights, "method.teacher")
            self._held[number] = placed(weights, now)
        self._held.move_to_end(number)
        while len(self._held) > HELD:
            self._held.popitem(last=False)
        return self._held[number]

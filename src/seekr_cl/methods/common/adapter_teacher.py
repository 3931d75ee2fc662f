"""What earlier models say of a replay batch, asked of the adapters that their tasks ended with.

Such a task keeps the trained weights of its adapter in place of its samples' signals (``teacher: adapter``). They are
asked in one more forward pass without gradient through the model that is being trained, with the old weights in the
adapter's place; nothing of the answer is rounded or left out. How a task is kept was decided when it was learned, so a
batch may hold both kinds, and several adapters.

Shapes: B batch, G samples of one task in it, L padded length, A answer positions, V vocabulary, P (sample, head) pairs,
R queries.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seekr_cl.attention import AttentionTap, DenseRows, RecordRows, RowIndex, RowTarget
from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import borrowed, is_like, is_sharded, reshard, whole
from seekr_cl.errors import ConfigError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.memory.method_state import StoredTensors
from seekr_cl.memory.signals import AttentionSignal
from seekr_cl.methods.base import Batch, Context
from seekr_cl.methods.common.gradients import check_names, placed, trained
from seekr_cl.methods.common.logit_distillation import LogitSettings, can_keep, logit_positions, pad_logits
from seekr_cl.methods.common.teachers import Answer, Member, StoredTeacher, find_places, row_targets

HELD = 4
"""Adapters that stay on the device between batches."""


def require_adapter(context: Context, settings: LogitSettings) -> None:
    """Makes sure that there is an adapter to keep, if one is to be kept.

    Raises:
        ConfigError: if not.
    """
    if settings.teacher == "adapter" and not hasattr(context.model, "peft_config"):
        raise ConfigError("method.teacher: 'adapter' needs an adapter to keep; set peft (lora), or teacher: stored")


def kept_adapter(context: Context, settings: LogitSettings) -> dict[str, Tensor] | None:
    """What the memory keeps of the model as it is now, to be asked later; ``None`` under ``teacher: stored``."""
    if settings.teacher == "stored":
        return None
    return {name: whole(weight).detach().cpu().clone() for name, weight in trained(context.model).items()}


def make_teacher(
    context: Context,
    settings: LogitSettings,
    tasks: Sequence[MemoryTask],
    tap: AttentionTap | None = None,
    rows: str | None = None,
    reduction: str = "sample_mean",
) -> StoredTeacher:
    """The teacher of what a memory holds: adapters are only looked at where a task keeps one.

    Args:
        context: model and layout.
        settings: the method's.
        tasks: what is replayed.
        tap: of a method that distils rows too.
        rows: the kind of signal whose rows are distilled; adapters are asked for ``attention`` alone.
        reduction: how rows are weighted.

    Raises:
        MemoryFormatError: if a task's adapter is not of the weights that are trained now.
    """
    stored = StoredTeacher(context.layout, rows, reduction)
    if all(task.teacher is None for task in tasks):
        return stored
    return AdapterTeacher(stored, context, settings, tasks, tap)


class AdapterTeacher(StoredTeacher):
    """The adapters of those tasks that keep one, beside stored signals of the others.

    Args:
        stored: reads the signals of samples that have some.
        context: model and layout.
        settings: the method's.
        tasks: what is replayed.
        tap: of a method that distils rows too.
    """

    def __init__(
        self,
        stored: StoredTeacher,
        context: Context,
        settings: LogitSettings,
        tasks: Sequence[MemoryTask],
        tap: AttentionTap | None,
    ) -> None:
        super().__init__(stored.layout, stored.rows, stored.reduction)
        self.context, self.settings, self.tap = context, settings, tap
        self._tasks = list(tasks)
        self._held: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        for number, task in enumerate(self._tasks):
            if task.teacher is not None and len(task.samples):
                self._weights(number)

    # A batch, in the data loader ------------------------------------------------------------------------------

    def collate(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """Stored signals as they are, and for each adapter what it will be asked."""
        with_signals = [row for row, (task, _) in enumerate(picked) if task.teacher is None]
        batch: Batch = {"logits": [], "rows": [], "asked": []}
        if with_signals:
            samples = [picked[row][1] for row in with_signals]
            batch["logits"] = [pad_logits(samples, self.layout, padded, with_signals)]
        if self.rows is not None:
            batch["rows"] = row_targets(picked, self.layout, padded, self.reduction, self.rows)
        groups: dict[int, list[int]] = {}
        for row, (task, _) in enumerate(picked):
            if task.teacher is not None:
                groups.setdefault(self._number(task), []).append(row)
        batch["asked"] = [self._question(number, rows, picked, padded) for number, rows in groups.items()]
        return batch

    def _number(self, task: MemoryTask) -> int:
        return next(number for number, one in enumerate(self._tasks) if one is task)

    def _question(
        self, number: int, rows: list[int], picked: list[tuple[MemoryTask, ReplaySample]], padded: int
    ) -> dict[str, Any]:
        samples, task = [picked[row][1] for row in rows], self._tasks[number]
        starts = [self.layout.offset(len(one.ids_L), padded) for one in samples]
        positions = [logit_positions(one, self.settings) + start for one, start in zip(samples, starts)]
        signals = [one.signals.get("attention") for one in samples]
        members = [
            Member(row, start, task.heads, signal.query_R)
            for row, start, signal in zip(rows, starts, signals)
            if isinstance(signal, AttentionSignal)
        ]
        question: dict[str, Any] = {
            "task": number,
            "first": min((int(one.min()) for one in positions if len(one)), default=padded - 1),
            "row_G": torch.tensor(rows),
            "position": pad_sequence(positions, batch_first=True),
            "real": pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in positions], batch_first=True),
            "places": None,
        }
        if self.tap is not None and self.rows == "attention" and members and task.heads:
            num_queries = max(len(one.query_R) for one in members)
            question["places"] = find_places(members, num_queries, len(picked), self.reduction)
        return question

    # A step ---------------------------------------------------------------------------------------------------

    def answer(self, batch: Batch) -> Answer:
        """What all adapters say that the batch asks, before the student's own forward pass, and stored signals."""
        # What stands whole after the last pass would not look sharded.
        reshard(self.context.model)
        questions = {question["task"]: question for question in batch["asked"]}
        logits, rows = [], list(batch["rows"])
        for number in self._asked_anywhere(list(questions)):
            if number not in questions:
                self._pass(number, batch, torch.zeros(1, dtype=torch.long, device=self.context.model.device), 1, None)
                continue
            own_logits, own_rows = self._ask(batch, questions[number])
            logits.append(own_logits)
            rows += own_rows
        return Answer(logits + batch["logits"], rows)

    def _asked_anywhere(self, own: list[int]) -> list[int]:
        """The tasks whose adapters are asked, by this process or, as a sharded model's passes need all, by any."""
        if not self._sharded:
            return own
        asked = torch.zeros(len(self._tasks))
        asked[own] = 1
        return collectives.all_reduce_sum(asked).nonzero().flatten().tolist()

    @property
    def _sharded(self) -> bool:
        return any(map(is_sharded, trained(self.context.model).values()))

    def _ask(self, batch: Batch, question: Mapping[str, Any]) -> tuple[Batch, list[RowTarget]]:
        row_G, places = question["row_G"], question["places"]
        wanted: dict[int, RowIndex] = {}
        if places is not None:
            index = places.index
            # In this pass its samples are alone.
            among = RowIndex(torch.searchsorted(row_G, index.sample_P), index.head_P, index.query_PR)
            wanted = {layer: among[pairs] for layer, pairs in places.layers.items()}
        record = RecordRows(wanted)
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
        logits = {"position": row_G[:, None] * length + position_GA, "real": question["real"], "prob": prob_GAV}
        logits |= {"row_G": row_G, "token": None, "tail": none_GA, "offset": none_GA}
        if places is None:
            return logits, []
        rows = DenseRows(torch.cat([record.rows[layer] for layer in wanted]))
        return logits, [RowTarget(places.index, rows, places.weight_PR, places.layers)]

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

"""LFPT5 in LAMOL's form: the model learns to write samples of its tasks too, and replays what it writes.

Shapes: B batch, L padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation.generate import stop_ids
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult, label_term
from seekr_cl.methods.common.generation import write
from seekr_cl.methods.common.logit_distillation import (
    LogitSettings,
    first_position,
    label_and_logit_terms,
    pad_logits,
    take_logits,
)
from seekr_cl.methods.common.sample_passes import SamplePass, similar_batches
from seekr_cl.methods.onpolicy_replay import written_state, written_tasks
from seekr_cl.models.context import context_length
from seekr_cl.settings import Ge, Gt, Hint, Lt, Settings
from seekr_cl.tasks import Encoded, collate
from seekr_cl.tasks.collate import IGNORE

TRIES = 3
"""Texts written for each pseudo-sample that is wanted: some have no answer in them or no end."""


@dataclass(frozen=True, kw_only=True)
class LFPT5Settings(Settings):
    """Settings of LFPT5; without ``consistency`` it is LAMOL.

    Attributes:
        lm_weight: weight of the loss on whole samples, which makes the model a writer of them (LAMOL's lambda; 0.25 in
            LAMOL and in LFPT5's official code).
        pseudo_ratio: pseudo-samples of all old tasks together, as a share of the new task's examples (LAMOL's gamma).
        consistency: weight c of the earlier model's outputs on pseudo-samples, summed over the answer tokens of the
            batch; all other terms weigh 1 - c (0.01 in LFPT5's official code; 0 is LAMOL).
        top_k: tokens that may be drawn at each place of a pseudo-sample (64 in LFPT5's official code, 20 in LAMOL's).
        prefix: begins a text to be written; ``{task}`` is its task's name (LAMOL's task token).
        separator: stands between prompt and answer in such a text (LAMOL's answer token).
    """

    lm_weight: Annotated[float, Gt(0), Hint("at 0 the model never learns to write")] = 0.25
    pseudo_ratio: Annotated[float, Ge(0), Hint("0 writes nothing")] = 0.2
    consistency: Annotated[float, Ge(0), Lt(1), Hint("0 is LAMOL")] = 0.01
    top_k: Annotated[int, Ge(0), Hint("0 draws from all tokens")] = 64
    prefix: str = "[{task}] "
    separator: str = " [answer] "

    def check(self) -> None:
        """Texts of different tasks differ, and an answer can be found in each."""
        if "{task}" not in self.prefix:
            raise ConfigError(f"method.prefix: '{self.prefix}' must have {{task}} in it, to tell the tasks apart")
        if not self.separator:
            raise ConfigError("method.separator: must not be empty, or no answer can be found in what is written")


class LFPT5(Method):
    """L = (1 - c) (L_task + lm L_lm) on new examples, (1 - c) (L_replay + lm L_lm) + c L_kl on pseudo-samples.

    L_lm is the mean cross entropy of every token of prefix, prompt, separator and answer after the prefix. L_kl is the
    *sum* of KL(earlier model, model) over the batch's answer tokens, as in the official code (model.py,
    Classification.py); as a mean, c = 0.01 would be next to nothing. Its logged value is the mean. LFPT5 tunes
    a T5's prompts; here it is whatever weights are trained, and LAMOL's special tokens are texts, so that the
    vocabulary stays what it is. Nothing of a task is kept but its name and the length of its longest sample; with
    ``replay.ratio`` real samples are replayed beside the written ones.
    """

    name = "lfpt5"
    paper = Paper(
        "LFPT5: A Unified Framework for Lifelong Few-shot Language Learning Based on Prompt Tuning of T5",
        "Qin and Joty, ICLR 2022; LAMOL: Sun et al., ICLR 2020 (arXiv 1909.03329)",
        "https://arxiv.org/abs/2110.07298",
    )
    Settings = LFPT5Settings
    last_turn_only = True
    memory = "replayed"
    generates = True
    replay_defaults: ClassVar = {"ratio": 0.0}
    settings: LFPT5Settings

    def __init__(self, settings: LFPT5Settings, context: Context) -> None:
        super().__init__(settings, context)
        self._known: dict[str, int] = dict(context.previous_state[1]["tasks"]) if context.previous_state else {}
        self._logits = LogitSettings(logits_top_k=None)
        self._written: list[MemoryTask] | None = None

    # One step -------------------------------------------------------------------------------------------------

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The task's loss, and the loss on the same examples as texts to be written."""
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"])
        parts = [(ids_L[real_L], label_L[real_L] != IGNORE) for ids_L, real_L, label_L in rows]
        texts = [
            self._text(self.context.task, ids_N[: int(learnt_N.float().argmax())], ids_N[learnt_N])
            for ids_N, learnt_N in parts
        ]
        terms = super().new_task_loss(model, batch)
        terms["task"].weight = 1 - self.settings.consistency
        return terms | {"lm": self._lm_term(model, self._pad(texts), batch["input_ids"].device)}

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """The samples as texts to be written, and the earlier model's outputs on them."""
        texts = [self._text(task.name, *_parts(sample)) for task, sample in picked]
        extras: Batch = {"lm": self._pad(texts)}
        if self.settings.consistency:
            extras["logits"] = pad_logits([sample for _, sample in picked], self.context.layout, padded)
        return extras

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Answer, whole text, and the earlier model's outputs on the answer."""
        rest = 1 - self.settings.consistency
        if self.settings.consistency:
            both = label_and_logit_terms(model, batch, [batch["logits"]], self._logits)
            label, divergence = both["replay"], both["logits"]
            # Of the whole batch, whose mean the term becomes where several processes share it.
            count = collectives.all_reduce_sum(batch["logits"]["real"].sum() * (not batch.get("filler", False)))
            divergence.weight = self.settings.consistency * float(count)
            label.weight = rest
            terms = {"replay": label, "consistency": divergence}
        else:
            terms = {"replay": label_term(model, batch, rest)}
        return terms | {"lm_old": self._lm_term(model, batch["lm"], batch["input_ids"].device)}

    def _lm_term(self, model: Any, batch: Batch, device: torch.device) -> LossTerm:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        return label_term(model, moved, self.settings.lm_weight * (1 - self.settings.consistency))

    # Texts ----------------------------------------------------------------------------------------------------

    def _text(self, task: str, prompt_N: Tensor, answer_N: Tensor) -> Encoded:
        """Prefix, prompt, separator and answer; all after the prefix is learned."""
        prefix, end = self._prefix(task), self._ids(self.settings.separator) + answer_N.tolist()
        prompt, context = prompt_N.tolist(), context_length(self.context.model)
        # What the text is longer by than the sample may not fit any more; a prompt loses its left, as in training.
        cut = 0 if context is None else max(0, len(prefix) + len(prompt) + len(end) - context)
        return Encoded(prefix + prompt[cut:] + end, len(prefix), 0)

    def _pad(self, texts: list[Encoded]) -> Batch:
        layout = self.context.layout
        return dict(collate(texts, layout.pad_id, layout.side, layout.multiple))

    def _prefix(self, task: str) -> list[int]:
        return self._ids(self.settings.prefix.format(task=task))

    def _ids(self, text: str) -> list[int]:
        assert self.context.tokenizer is not None
        return list(self.context.tokenizer(text, add_special_tokens=False)["input_ids"])

    # One task's ends ------------------------------------------------------------------------------------------

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """What the model writes of each old task, and what was kept of it."""
        if self._written is None:
            unknown = [task.name for task in tasks if task.name not in self._known]
            if unknown:
                self.context.warn(f"lfpt5 did not learn {', '.join(unknown)}, so it cannot write samples of them")
            wanted = round(self.settings.pseudo_ratio * len(self.context.examples))
            # As even as it goes, with one more for the first ones.
            shares = [wanted // len(self._known) + (n < wanted % len(self._known)) for n in range(len(self._known))]
            pseudo = {
                name: self._write(number, name, share)
                for number, (name, share) in enumerate(zip(self._known, shares))
                if share
            }
            real = {task.name: list(task.samples) for task in tasks}
            both = {name: real.get(name, []) + pseudo.get(name, []) for name in dict.fromkeys([*real, *pseudo])}
            self._written = [MemoryTask(name, self._with_outputs(samples)) for name, samples in both.items() if samples]
        return self._written

    def _write(self, number: int, name: str, count: int) -> list[ReplaySample]:
        tokenizer, found = self.context.tokenizer, []
        assert tokenizer is not None
        new_tokens = self._known[name]
        ends = stop_ids(tokenizer, self.context.model.generation_config)
        written = write(
            self.context.model,
            [self._prefix(name)] * (TRIES * count),
            new_tokens,
            eos_id=ends,
            pad_id=self.context.layout.pad_id,
            seed=self.context.seed + number,
            top_k=self.settings.top_k,
        )
        separator = self._ids(self.settings.separator)
        for new in written:
            at = _find(separator, new)
            answer = new[at + len(separator) :] if at is not None else []
            # A prompt, a separator, an answer of a token or more, and the end.
            if at and len(answer) > 1 and answer[-1] in ends:
                text = [str(tokenizer.decode(part, skip_special_tokens=True)) for part in (new[:at], answer)]
                found.append(ReplaySample(text[0], text[1], torch.tensor(new[:at] + answer), at))
        if len(found) < count:
            self.context.warn(f"lfpt5: {len(found)} of {count} pseudo-samples of '{name}' could be read")
        return found[:count]

    def _with_outputs(self, samples: Sequence[ReplaySample]) -> list[ReplaySample]:
        if not self.settings.consistency:
            return list(samples)
        found: dict[int, ReplaySample] = {}
        for places in similar_batches([len(one.ids_L) for one in samples], self.context.model):
            batch = [samples[place] for place in places]
            with torch.no_grad():
                passed = SamplePass(self.context.model, [one.ids_L for one in batch], list(map(first_position, batch)))
            for row, place in enumerate(places):
                signal = take_logits(passed.said(row), samples[place], self._logits, self.context.signal_dtype)
                found[place] = replace(samples[place], signals={"logits": signal})
        return [found[place] for place in range(len(samples))]

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Notes that the model can write this task now; it does not know the general data that comes before."""
        if name == self.context.task:
            extra = len(self._ids(self.settings.separator))
            self._known[name] = extra + max(len(example.input_ids) for example in self.context.examples)
        # Each task's longest sample, by the names under which they are written.
        return TaskResult(MemoryTask(name, samples), next_state=({}, {"tasks": self._known}))

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was written, so that a task that goes on need not write it again."""
        tensors, content = written_state(self._written)
        return tensors, content | {"known": self._known}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""
        self._written = written_tasks(tensors, content)
        self._known = dict(content["known"])


def _parts(sample: ReplaySample) -> tuple[Tensor, Tensor]:
    begin, end = sample.answer
    return sample.ids_L[:begin], sample.ids_L[begin:end]


def _find(part: list[int], ids: list[int]) -> int | None:
    """Where ``part`` stands first in ``ids``."""
    places = range(len(ids) - len(part) + 1)
    return next((place for place in places if ids[place : place + len(part)] == part), None)

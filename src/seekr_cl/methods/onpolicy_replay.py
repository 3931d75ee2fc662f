"""On-policy replay: the prompts of old samples with the best of the answers that the model itself gives to them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from seekr_cl.evaluation.generate import stop_ids
from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.memory.sample_codec import pack, unpack
from seekr_cl.methods.base import Batch, Context, LossTerm, Paper
from seekr_cl.methods.common.generation import write
from seekr_cl.methods.common.gradients import frozen_copy
from seekr_cl.methods.common.on_policy import answers, distil, nothing
from seekr_cl.methods.common.sample_passes import answer_losses
from seekr_cl.methods.replay import Replay
from seekr_cl.settings import Ge, Gt, Hint, Le, Settings, setting
from seekr_cl.tasks import Encoded
from seekr_cl.tasks.chat_reading import AnswerReader
from seekr_cl.tasks.chat_rendering import Renderer
from seekr_cl.tasks.chat_template import ChatSettings

ROOM = 2
"""An answer may be this many times as long as the longest reference of its task before it is broken off."""


@dataclass(frozen=True, kw_only=True)
class OnPolicySettings(Settings):
    """Settings of on-policy replay.

    Attributes:
        scorer: how answers are ranked: by the task's ``metric`` against the reference (the paper's OPR-RU) or by the
            model's ``confidence``, the mean log-probability of the answer's tokens (OPR-SC).
        keep: share of each task's answers that is replayed, the best first. The paper answers all old training
            prompts and keeps as many as 1 or 10 in 100 of them; a memory only has its own prompts to answer.
        temperature: of the answers; the official code's 0.1. 0 takes the likeliest token each time.
        loss: ``labels`` learns the best of the answers from before the task. ``kl`` is on-policy distillation: in each
            replay batch the model as it is then answers, and KL(model, model before the task) on the answer's tokens
            is the loss, over the whole vocabulary. Nothing is scored, so ``scorer`` and ``keep`` are for ``labels``.
    """

    scorer: Literal["metric", "confidence"] = setting("metric", needs={"loss": "labels"})
    keep: Annotated[float, Gt(0), Le(1), Hint("1 replays every answer")] = setting(0.5, needs={"loss": "labels"})
    temperature: Annotated[float, Ge(0), Hint("0 takes the likeliest token")] = 0.1
    loss: Literal["labels", "kl"] = "labels"


class OnPolicyReplay(Replay):
    """L = L_task + L_replay, where the replayed answers are the model's own from right before the task.

    With ``loss: kl`` L_replay is the divergence from the model before the task on answers that are written in each
    batch (Lu and Thinking Machines, *On-Policy Distillation*, 2025); that model is held as a frozen copy.

    An answer that the model does not end counts for nothing. Where a task has no answer left, its references come
    back instead, with a warning.
    """

    name = "onpolicy_replay"
    paper = Paper(
        "On-Policy Replay for Continual Supervised Fine-Tuning", "Chen et al., 2026", "https://arxiv.org/abs/2605.29495"
    )
    Settings = OnPolicySettings

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self._answered: list[MemoryTask] | None = None
        self._reader: AnswerReader | None = None
        self._teacher: nn.Module | None = None
        self._batches = 0
        if settings.loss == "kl":
            # It writes in training, which engines that gather weights for a pass would have to do in step.
            self.weight_access = "whole"  # type: ignore[misc]

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """Each old task with the model's best answers in place of the references; as it is where it answers later."""
        if self.settings.loss == "kl":
            if any(task.totals.samples for task in tasks):
                self._teacher = frozen_copy(self.context.model)
            return tasks
        if self._answered is None:
            self._answered = [self._answer(number, task) for number, task in enumerate(tasks)]
        return self._answered

    def _answer(self, number: int, task: MemoryTask) -> MemoryTask:
        tokenizer = self.context.tokenizer
        assert tokenizer is not None
        # A sample without a prompt has nothing that could be answered.
        asked = [sample for sample in task.samples if sample.completion_start]
        if not asked:
            return task
        ends = stop_ids(tokenizer, self.context.model.generation_config)
        written = write(
            self.context.model,
            [sample.ids_L[: sample.completion_start].tolist() for sample in asked],
            ROOM * max(end - begin for begin, end in (sample.answer for sample in asked)),
            eos_id=ends,
            pad_id=self.context.layout.pad_id,
            seed=self.context.seed + number,
            temperature=self.settings.temperature,
        )
        answered: list[tuple[ReplaySample, ReplaySample]] = []
        for sample, new in zip(asked, written):
            if len(new) > 1 and new[-1] in ends:
                # Earlier answers of a conversation stay what they were and are not learned again.
                ids_L = torch.cat([sample.ids_L[: sample.completion_start], torch.tensor(new)])
                text = self._read(new[:-1])
                own = replace(sample, completion=text, ids_L=ids_L, signals={}, learnt=None)
                answered.append((sample, own))
        if not answered:
            self.context.warn(f"task '{task.name}': the model ends none of its answers; the references are replayed")
            return task
        count, scores = best_count(self.settings.keep, len(asked)), self._scores(task, answered)
        # Stable: of equal scores the earlier sample stays.
        best = sorted(range(len(answered)), key=lambda place: -scores[place])[:count]
        return MemoryTask(task.name, [answered[place][1] for place in sorted(best)], info=task.info)

    # A step with ``loss: kl`` ----------------------------------------------------------------------------------

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """Where each sample's last answer begins and ends [B]."""
        if self.settings.loss == "labels":
            return {}
        offset_B = [self.context.layout.offset(len(sample.ids_L), padded) for _, sample in picked]
        bounds_B2 = torch.tensor([sample.answer for _, sample in picked])
        return {"answer_B2": bounds_B2 + torch.tensor(offset_B)[:, None]}

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The labels' loss, or the distance from the model before the task on answers written now."""
        if self._teacher is None:
            return super().replay_loss(model, batch)
        self._batches += 1
        bounds = batch["answer_B2"].tolist()
        rows = zip(batch["input_ids"], batch["attention_mask"].bool(), bounds, strict=True)
        prompts = [ids_L[:begin][real_L[:begin]].tolist() for ids_L, real_L, (begin, _) in rows]
        prompts = [prompt for prompt in prompts if prompt]
        room, seed = ROOM * max(end - begin for begin, end in bounds), self.context.seed + 7919 * self._batches
        written = answers(self.context, prompts, room, seed, self.settings.temperature) if prompts else []
        asked = [Encoded(prompt + new, len(prompt), 0) for prompt, new in zip(prompts, written, strict=True) if new]
        if not asked:
            # No prompt, or none that leaves room for an answer.
            return {"replay": LossTerm(nothing(model, batch), count=0)}
        value, count = distil(self.context, model, partial(nullcontext, self._teacher), asked, asked, "reverse")
        return {"replay": LossTerm(value, count=count)}

    def close(self) -> None:
        """Gives the earlier model's memory back."""
        self._teacher = None

    # Before the task ------------------------------------------------------------------------------------------

    def _read(self, ids: list[int]) -> str:
        """What an answer says, without think block and markers of the chat template."""
        if self._reader is None:
            self._reader = AnswerReader(self.context.tokenizer, Renderer(self.context.tokenizer, ChatSettings()))
        plain = not self._reader.needs_markers
        assert self.context.tokenizer is not None
        return self._reader.read(str(self.context.tokenizer.decode(ids, skip_special_tokens=plain)))

    def _scores(self, task: MemoryTask, answered: Sequence[tuple[ReplaySample, ReplaySample]]) -> list[float]:
        """How good answers are, each with the sample whose reference it replaces."""
        if self.settings.scorer == "confidence":
            own = [one for _, one in answered]
            losses = answer_losses(self.context.model, [one.ids_L for one in own], [(one.answer,) for one in own])
            return [-float(loss_A.mean()) for loss_A in losses]
        metric = get_metric(str(task.info.get("metric", "rouge_l")))
        scores = []
        for reference, own_answer in answered:
            begin, end = reference.answer
            asked = reference.completion or self._read(reference.ids_L[begin:end].tolist())
            scores += metric.score([own_answer.completion], [[asked]], [reference.prompt])
        return scores

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The answers, so that a task that goes on need not ask for them again."""
        tensors, content = written_state(self._answered)
        return tensors, content | {"batches": self._batches}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""
        self._answered = written_tasks(tensors, content)
        self._batches = content.get("batches", 0)


def best_count(keep: float, asked: int) -> int:
    """How many of a task's answers are replayed."""
    return max(1, round(keep * asked)) if asked else 0


def written_state(tasks: Sequence[MemoryTask] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tasks whose samples the model wrote, for a checkpoint."""
    if tasks is None:
        return {}, {}
    samples = [sample for task in tasks for sample in task.samples]
    texts = [{"prompt": sample.prompt, "completion": sample.completion} for sample in samples]
    about = [{"name": task.name, "samples": len(task.samples), "info": task.info} for task in tasks]
    return {f"written/{name}": tensor for name, tensor in pack(samples).items()}, {"texts": texts, "tasks": about}


def written_tasks(tensors: dict[str, Tensor], content: dict[str, Any]) -> list[MemoryTask] | None:
    """What ``written_state`` laid out."""
    if "tasks" not in content:
        return None
    named = {name.removeprefix("written/"): t for name, t in tensors.items() if name.startswith("written/")}
    samples = iter(unpack(named, content["texts"]))
    return [
        MemoryTask(one["name"], [next(samples) for _ in range(one["samples"])], info=one["info"])
        for one in content["tasks"]
    ]

"""SDFT: the model shown a right answer teaches the model that is not shown it, on answers of the model's own.

Shapes: B batch, L padded length, V vocabulary.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from seekr_cl.errors import ConfigError
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper
from seekr_cl.methods.common.gradients import frozen_copy, trained
from seekr_cl.methods.common.on_policy import answers, distil, nothing
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.context import context_length
from seekr_cl.settings import Ge, Gt, Hint, Le, Settings, setting
from seekr_cl.tasks import Encoded

ROOM = 2
"""An answer may be this many times as long as the task's longest before it is broken off."""
_PLACES = re.compile(r"(\{prompt\}|\{answer\})")


@dataclass(frozen=True, kw_only=True)
class SDFTSettings(Settings):
    """Settings of SDFT.

    Attributes:
        teacher: who is shown the answer: the model before the task (``frozen``), a moving average of the trained one
            (``ema``, the official code's), or the model without the adapter that is trained (``off``).
        ema_rate: how far the average goes towards the model in each step; the official code's 0.01.
        top_k: of the teacher's likeliest tokens each counts by itself, all others as one; 0 takes all. 20 did as well
            as all in a published ablation (tinker-cookbook).
        temperature: of the model's answers; 0 takes the likeliest token.
        skip: tokens at the beginning of each answer that are not distilled; the official code leaves out 3.
        max_new_tokens: where an answer is broken off; default twice the task's longest.
        demonstration: what the teacher is shown before an answer is begun; by default the example as an earlier turn.
    """

    teacher: Literal["frozen", "ema", "off"] = "frozen"
    ema_rate: Annotated[float, Gt(0), Le(1)] = setting(0.01, needs={"teacher": "ema"})
    top_k: Annotated[int, Ge(0), Hint("0 takes all tokens")] = 20
    temperature: Annotated[float, Ge(0), Hint("0 takes the likeliest token")] = 1.0
    skip: Annotated[int, Ge(0)] = 0
    max_new_tokens: Annotated[int | None, Ge(1)] = None
    demonstration: str = "{prompt}{answer}\n{prompt}"

    def check(self) -> None:
        """The teacher sees the answer before it is asked."""
        found = _PLACES.findall(self.demonstration)
        if "{answer}" not in found or found[-1] != "{prompt}":
            raise ConfigError(
                "method.demonstration: must hold {answer}, and {prompt} after it, so that the question is asked again"
            )


class SDFT(Method):
    """L = mean_t KL(teacher(. | demonstration, x, y_<t), model(. | x, y_<t)) with y drawn from the model.

    Labels are only what the teacher is shown. The authors' results are with this forward KL (the paper's text has the
    reverse); the teacher's default is the frozen model, which published reproductions found as good and steadier.
    A model that does not use what it is shown learns nothing this way, small ones among them
    (docs/self_distillation.md).
    """

    name = "sdft"
    paper = Paper(
        "Self-Distillation Enables Continual Learning", "Shenfeld et al., 2026", "https://arxiv.org/abs/2601.19897"
    )
    Settings = SDFTSettings
    training_defaults = TrainingDefaults(
        learning_rate=2e-5, lr_scheduler_type="cosine", reason="official code, main.py (all weights)"
    )
    frozen_copy = True
    last_turn_only = True
    # It writes in training, which engines that gather weights for a pass would have to do in step.
    weight_access = "whole"
    settings: SDFTSettings

    def __init__(self, settings: SDFTSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._batches = 0
        self._teacher: Any = None
        if settings.teacher == "off":
            if not hasattr(context.model, "disable_adapter"):
                raise ConfigError("method.teacher: off needs an adapter to switch off; set peft (lora), or frozen")
        else:
            self._teacher = frozen_copy(context.model)
        if settings.teacher == "ema" and any(w.dtype == torch.bfloat16 for w in trained(context.model).values()):
            context.warn(
                f"method.teacher: in bfloat16 an average that goes {settings.ema_rate:g} of the way in a step hardly "
                "moves; use frozen, or dtype: float32 with bf16: true"
            )

    def new_task_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """Answers to the batch's prompts, and the teacher's distance on them."""
        examples = [self.context.examples[place] for place in batch["example_B"].tolist()]
        # An example without a prompt has nothing that could be answered.
        asked = [one for one in examples if one.completion_start]
        prompts = [one.input_ids[: one.completion_start] for one in asked]
        self._batches += 1
        seed = self.context.seed + 7919 * self._batches
        written = answers(self.context, prompts, self._room(), seed, self.settings.temperature) if prompts else []
        student, teacher = [], []
        for one, prompt, new in zip(asked, prompts, written, strict=True):
            if new:
                shown = self._shown(prompt, one.input_ids[one.completion_start :], len(new))
                student.append(Encoded(prompt + new, len(prompt), 0))
                teacher.append(Encoded(shown + new, len(shown), 0))
        if not student:
            # No prompt, or none that leaves room for an answer.
            return {"task": LossTerm(nothing(model, batch), count=0)}
        value, count = distil(
            self.context,
            model,
            self._teaching,
            student,
            teacher,
            "forward",
            self.settings.top_k or None,
            self.settings.skip,
        )
        return {"task": LossTerm(value, count=count)}

    @contextmanager
    def _teaching(self) -> Iterator[Any]:
        """The teacher, in evaluation mode."""
        if self._teacher is not None:
            yield self._teacher
            return
        network: Any = self.context.model
        training = network.training
        try:
            with network.disable_adapter():
                yield network.eval()
        finally:
            network.train(training)

    def _room(self) -> int:
        if self.settings.max_new_tokens is not None:
            return self.settings.max_new_tokens
        return ROOM * max(len(one.input_ids) - one.completion_start for one in self.context.examples)

    def _shown(self, prompt: list[int], answer: list[int], new: int) -> list[int]:
        """The demonstration's tokens; what is too long for the model loses its left."""
        tokenizer = self.context.tokenizer
        assert tokenizer is not None
        shown: list[int] = []
        for piece in _PLACES.split(self.settings.demonstration):
            if piece == "{answer}":
                shown += answer
            elif piece == "{prompt}":
                again = bool(shown) and prompt[:1] == [tokenizer.bos_token_id]
                shown += prompt[1:] if again else prompt
            elif piece:
                shown += list(tokenizer(piece, add_special_tokens=False)["input_ids"])
        context = context_length(self.context.model)
        return shown if context is None else shown[max(0, len(shown) + new - context) :]

    def after_step(self, model: nn.Module) -> None:
        """The average follows the model."""
        if self.settings.teacher == "ema":
            own = dict(self._teacher.named_parameters())
            with torch.no_grad():
                for name, weight in trained(model).items():
                    own[name].lerp_(weight.detach().to(own[name].dtype), self.settings.ema_rate)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """How often the model was asked, and the average."""
        tensors: dict[str, Tensor] = {}
        if self.settings.teacher == "ema":
            own = dict(self._teacher.named_parameters())
            tensors = {name: own[name].detach() for name in trained(self.context.model)}
        return tensors, {"batches": self._batches}

    def load_state_dict(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""
        self._batches = content["batches"]
        own = dict(self._teacher.named_parameters()) if tensors else {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def close(self) -> None:
        """Gives the teacher's memory back."""
        self._teacher = None

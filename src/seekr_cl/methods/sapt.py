"""SAPT: a low-rank adapter for each task, mixed for each question by an attention over the tasks' keys.

Shapes: B batch, L padded length, D the model's width, T tasks so far.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from seekr_cl import ranks
from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.adapters import AdapterSettings, attach, name_base
from seekr_cl.methods.base import Batch, Carried, Context, LossTerm, Method, Paper
from seekr_cl.methods.question import QuestionModel, question_of, question_tokens, whole_number


@dataclass(frozen=True, kw_only=True, slots=True)
class SAPTSettings(AdapterSettings):
    """Settings of SAPT; the defaults are those of the official scripts for LLaMA-2 on SuperNI.

    Attributes:
        rank: of each task's adapter.
        dropout: on its input, in training.
        query_size: width between the two layers that turn a question into a query.
        temperature: the scores are divided by temperature sqrt(D).
        reflection: weight of the divergence from the attention that old tasks had when they were new (lambda).
    """

    rank: int = 4
    dropout: float = 0.0
    query_size: int = 100
    temperature: float = 1.0
    reflection: float = 1.0

    def __post_init__(self) -> None:
        AdapterSettings.__post_init__(self)
        if self.query_size < 1:
            raise ConfigError(f"method.query_size: {self.query_size} must be at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"method.temperature: {self.temperature} must be above 0")
        if self.reflection < 0:
            raise ConfigError(f"method.reflection: {self.reflection} is negative; 0 switches the term off")


class SharedAttention(nn.Module):
    """log softmax(k_t q / (temperature sqrt(D))) over the tasks' keys, with q = LayerNorm(SiLU(W_2 W_1 x)).

    Args:
        size: D.
        query_size: rows of W_1.
        temperature: of the scores.
    """

    def __init__(self, size: int, query_size: int, temperature: float) -> None:
        super().__init__()
        self.down = nn.Linear(size, query_size, bias=False)
        self.up = nn.Linear(query_size, size, bias=False)
        self.norm = nn.LayerNorm(size)
        self.keys = nn.ParameterList()
        self.temperature = temperature

    def add_key(self) -> None:
        """One more task's key, uniform in (-1, 1)."""
        self.keys.append(nn.Parameter(torch.empty(self.down.in_features).uniform_(-1, 1)))

    def forward(self, question_BD: Tensor) -> Tensor:
        """Logarithms of the weights [B, T]."""
        query_BD = self.norm(F.silu(self.up(self.down(question_BD)))).float()
        score_BT = (query_BD[:, None] * torch.stack(list(self.keys))).sum(-1)
        return (score_BT / (self.temperature * math.sqrt(query_BD.shape[1]))).log_softmax(-1)


class SharedLoraModel(QuestionModel):
    """W x + sum_t a_t(question) B_t A_t x with the adapters of all tasks."""

    method = "sapt"
    selector: SharedAttention
    _question_BD: Tensor | None = None
    _weight_BT: Tensor | None = None

    def describe(self) -> dict[str, Any]:
        """Sizes of the attention."""
        attention = self.selector
        return {
            "query_size": attention.down.out_features,
            "temperature": attention.temperature,
            "tasks": len(attention.keys),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """The attention over as many keys as there are adapters."""
        temperature = content.get("temperature")
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}, not a number above 0")
        if content.get("tasks") != len(self.peft_config):
            raise ValueError(f"seekr_method.json tells of {content.get('tasks')} tasks, not {len(self.peft_config)}")
        self.make_selector(whole_number(content, "query_size"), temperature)

    def make_selector(self, query_size: int, temperature: float) -> None:
        """A new attention with a key for each adapter."""
        size = self.plain.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            self.selector = SharedAttention(size, query_size, float(temperature))
            for _ in self.peft_config:
                self.selector.add_key()
        self.weigh_adapters()

    def weigh_adapters(self) -> None:
        """Has the output of every adapter multiplied by its task's weight."""
        for module in self.plain.modules():
            if isinstance(module, LoraLayer):
                for number, name in enumerate(self.peft_config):
                    up = dict(module.lora_B.items()).get(name)
                    if up is not None and not up._forward_hooks:
                        up.register_forward_hook(partial(self._weigh, number))

    def _weigh(self, number: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Under reentrant checkpointing a layer's backward pass must find the attention's own graph in it.
        weight_BT = self.selector(self._question_BD).exp() if self._weight_BT is None else self._weight_BT
        weight_B = weight_BT[:, number].to(output.dtype).repeat_interleave(len(output) // len(weight_BT))
        return output * weight_B.view(-1, *[1] * (output.dim() - 1))

    def ask(self, input_ids: Tensor, attention_mask: Tensor | None, question_mask: Tensor | None) -> Tensor:
        """What the next passes are about: the largest of the question's embeddings at each place, [B, D]."""
        asked_BL = question_tokens(input_ids, attention_mask, question_mask)
        self._question_BD = self.embed(input_ids).masked_fill(~asked_BL[..., None], -torch.inf).amax(1)
        alone = self.training and _reentrant(self.plain)
        if alone and ranks.count() > 1:
            raise ConfigError(
                "gradient_checkpointing_kwargs: sapt uses its attention in every layer, whose gradients several "
                "processes cannot average under reentrant checkpointing; set use_reentrant: false"
            )
        self._weight_BT = None if alone else self.selector(self._question_BD).exp()
        return self._question_BD

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        question_mask: Tensor | None = None,
        attention_only: bool = False,
        **more: Any,
    ) -> Any:
        """PEFT's arguments; with ``attention_only`` the logarithms of the tasks' weights [B, T] and nothing else."""
        question_BD = self.ask(input_ids, attention_mask, question_mask)
        if attention_only:
            return self.selector(question_BD)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """The base model's ``generate``; the whole prompt is the question, also for what follows it."""
        self.ask(input_ids, attention_mask, None)
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **more)


class SAPT(Method):
    """L = L_task + lambda KL(a_old, a_now) over questions of old tasks, with SAPT-LoRA's adapters.

    The new task trains its adapter, its key and the layers that make queries; the earlier adapters and keys stay as
    they are. Deviations: questions of old tasks come from the memory, where the paper has a model write pseudo samples
    for this (2 in 100 of a task's data); so their attention when they were new is a mean over kept samples, where the
    official code takes the development split. Padding is no part of a question. In the official scripts every
    step has questions of every old task; here it has a replay batch of all of them together. Its early stopping on
    development data is not there.
    """

    name = "sapt"
    paper = Paper(
        "SAPT: A Shared Attention Framework for Parameter-Efficient Continual Learning of Large Language Models",
        "Zhao et al., 2024",
        "https://arxiv.org/abs/2401.08295",
    )
    Settings = SAPTSettings
    adapters = True
    replays = True
    replay_defaults: ClassVar[Mapping[str, Any]] = {"ratio": 0.02, "every": 1, "step": "joint"}

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        model: Any = context.model
        if self.goes_on_from(model):
            _check_same(settings, model)
            number = len(model.peft_config) + 1
            model = attach(model, settings.lora(), context.seed, make=partial(_add, name=f"task-{number}"))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(context.seed)
                model.selector.add_key()
            model.weigh_adapters()
        else:
            config = settings.lora()
            model = attach(model, config, context.seed, make=SharedLoraModel)
            name_base(config, model)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(context.seed)
                model.make_selector(settings.query_size, settings.temperature)
        newest = list(model.peft_config)[-1]
        for name, weight in model.base_model.named_parameters():
            weight.requires_grad_(f".lora_A.{newest}." in name or f".lora_B.{newest}." in name)
        model.selector.to(model.device)
        model.selector.requires_grad_(True)
        for key in model.selector.keys[:-1]:
            key.requires_grad_(False)
        context.model = model
        tensors, content = context.carried or ({}, {"tasks": []})
        self._attention = {name: tensors[f"attention/{place}"] for place, name in enumerate(content["tasks"])}
        for name, row_T in self._attention.items():
            if row_T.dim() != 1 or not 0 < len(row_T) < len(model.selector.keys):
                raise MemoryFormatError(
                    f"sapt: the memory carries the attention of task '{name}' over {tuple(row_T.shape)} adapters, and "
                    f"the model has {len(model.selector.keys) - 1}; take the model that belongs to this memory"
                )

    @classmethod
    def goes_on_from(cls, model: Any) -> bool:
        """Whether a model comes with adapters mixed by attention."""
        return isinstance(model, SharedLoraModel)

    def old_samples(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """The tasks that have an adapter; general data has none."""
        without = [task.name for task in tasks if task.name not in self._attention]
        if without:
            self.context.warn(f"sapt has no adapter for {', '.join(without)}, so these samples are not replayed")
        return [task for task in tasks if task.name in self._attention]

    def replay_extras(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """The attention [B, T] of the samples' tasks when they were new; none of it on later tasks."""
        count = len(self._model.selector.keys)
        rows = [self._attention[task.name] for task, _ in picked]
        return {"attention_BT": torch.stack([F.pad(row_T, (0, count - len(row_T))) for row_T in rows])}

    def replay_terms(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The divergence of the attention from what it was."""
        log_BT = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            question_mask=question_of(batch),
            attention_only=True,
        )
        then_BT = batch["attention_BT"]
        divergence_B = (torch.special.xlogy(then_BT, then_BT) - then_BT * log_BT).sum(1)
        # The adapters have no part in it, and several processes would wait for their gradients.
        nothing = torch.stack([weight.sum() for weight in self._model.parameters() if weight.requires_grad]).sum() * 0
        return {"reflection": LossTerm(divergence_B.mean() + nothing, self.settings.reflection)}

    def after_task(self, name: str, samples: list[ReplaySample]) -> MemoryTask:
        """Notes the mean attention of the kept samples' questions."""
        if name == self.context.task and samples:
            with torch.no_grad():
                rows = [
                    self._model(
                        sample.ids_L[None, : max(1, sample.completion_start)].to(self._model.device),
                        attention_only=True,
                    ).exp()[0]
                    for sample in samples
                ]
            self._attention[name] = torch.stack(rows).mean(0).cpu()
        return MemoryTask(name, samples)

    def carry_on(self) -> Carried | None:
        """The attention of every task when it was new, as long as it had adapters to attend to."""
        rows = {f"attention/{place}": row_T for place, row_T in enumerate(self._attention.values())}
        return rows, {"tasks": list(self._attention)}

    def finished_model(self) -> PreTrainedModel:
        """The model with the adapters of all tasks."""
        self._model.disable_input_require_grads()
        return self.context.model

    @property
    def _model(self) -> Any:
        return self.context.model


def _add(model: Any, config: Any, name: str) -> Any:
    model.add_adapter(name, config)
    model.base_model.set_adapter(list(model.peft_config))
    return model


def _reentrant(model: nn.Module) -> bool:
    """Whether layers are checkpointed in the way that runs a backward pass within the backward pass."""
    checkpointed = (part for part in model.modules() if getattr(part, "gradient_checkpointing", False))
    calls = (getattr(part, "_gradient_checkpointing_func", None) for part in checkpointed)
    return any(getattr(call, "keywords", {}).get("use_reentrant", True) for call in calls if call is not None)


def _check_same(settings: SAPTSettings, model: SharedLoraModel) -> None:
    for key in ("query_size", "temperature"):
        if model.describe()[key] != getattr(settings, key):
            raise ConfigError(
                f"method.{key}: {getattr(settings, key)}, but the model comes with a {key} of {model.describe()[key]}; "
                "keep that, or begin with the base model"
            )

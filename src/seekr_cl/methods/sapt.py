"""SAPT: a low-rank adapter for each task, mixed for each question by an attention over the tasks' keys.

Shapes: B batch, L padded length, D the model's width, T tasks so far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel

from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import MemoryTask, ReplaySample
from seekr_cl.methods.base import Batch, Context, LossTerm, Method, Paper, TaskResult
from seekr_cl.methods.common.lora import AdapterSettings, attach, name_base
from seekr_cl.methods.training_defaults import TrainingDefaults
from seekr_cl.models.query_adapters import query_mask_of
from seekr_cl.models.shared_lora import SharedLoraModel
from seekr_cl.settings import Ge, Gt, Hint, Lt


@dataclass(frozen=True, kw_only=True)
class SAPTSettings(AdapterSettings):
    """Settings of SAPT; the defaults are those of the official scripts for LLaMA-2 on SuperNI.

    Attributes:
        rank: of each task's adapter.
        dropout: on its input, in training.
        query_size: width between the two layers that turn a question into a query.
        temperature: the scores are divided by temperature sqrt(D).
        reflection: weight of the divergence from the attention that old tasks had when they were new (lambda).
    """

    rank: Annotated[int, Ge(1)] = 4
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    query_size: Annotated[int, Ge(1)] = 100
    temperature: Annotated[float, Gt(0)] = 1.0
    reflection: Annotated[float, Ge(0), Hint("0 switches the term off")] = 1.0


class SAPT(Method):
    """L = L_task + lambda KL(a_old, a_now) over questions of old tasks, with SAPT-LoRA's adapters.

    The new task trains its adapter, its key and the layers that make queries; the earlier adapters and keys stay as
    they are. Deviations: questions of old tasks come from the memory, where the paper has a model write pseudo samples
    for this (2 in 100 of a task's data); so their attention when they were new is a mean over kept samples, where the
    official code takes the development split. Padding is no part of a question. In the official scripts every
    step has questions of every old task and one KL for each of them, so that lambda grows with the tasks; here a replay
    batch of all of them together weighs as much (``replay.over_tasks: sum``). The script for the long sequence
    (gen_script_long_llama.py) switches reflection off for six of its tasks, which is not done here. Early stopping on
    development data is not there.
    """

    name = "sapt"
    paper = Paper(
        "SAPT: A Shared Attention Framework for Parameter-Efficient Continual Learning of Large Language Models",
        "Zhao et al., 2024",
        "https://arxiv.org/abs/2401.08295",
    )
    Settings = SAPTSettings
    training_defaults = TrainingDefaults(
        learning_rate=5e-5, lr_scheduler_type="constant", reason="official scripts for LLaMA-2 on SuperNI"
    )
    last_turn_only = True
    adapters = True
    weight_access = "whole"
    memory = "replayed"
    replay_defaults: ClassVar[Mapping[str, Any]] = {
        "ratio": 0.02,
        "every": 1,
        "step": "joint",
        "over_tasks": "sum",
    }

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
        tensors, content = context.previous_state or ({}, {"tasks": []})
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

    def replay_source(self, tasks: Sequence[MemoryTask]) -> Sequence[MemoryTask]:
        """The tasks that have an adapter; general data has none."""
        without = [task.name for task in tasks if task.name not in self._attention]
        if without:
            self.context.warn(f"sapt has no adapter for {', '.join(without)}, so these samples are not replayed")
        return [task for task in tasks if task.name in self._attention]

    def collate_replay(self, picked: list[tuple[MemoryTask, ReplaySample]], padded: int) -> Batch:
        """The attention [B, T] of the samples' tasks when they were new; none of it on later tasks."""
        count = len(self._model.selector.keys)
        rows = [self._attention[task.name] for task, _ in picked]
        return {"attention_BT": torch.stack([F.pad(row_T, (0, count - len(row_T))) for row_T in rows])}

    def replay_loss(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The divergence of the attention from what it was."""
        log_BT = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            query_mask=query_mask_of(batch),
            attention_only=True,
        )
        then_BT = batch["attention_BT"]
        divergence_B = (torch.special.xlogy(then_BT, then_BT) - then_BT * log_BT).sum(1)
        # The adapters have no part in it, and several processes would wait for their gradients.
        nothing = torch.stack([weight.sum() for weight in self._model.parameters() if weight.requires_grad]).sum() * 0
        return {"reflection": LossTerm(divergence_B.mean() + nothing, self.settings.reflection)}

    def after_task(self, name: str, samples: list[ReplaySample]) -> TaskResult:
        """Leaves the attention of every task when it was new, this one's as a mean over the kept samples' questions."""
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
        rows_by_place = {f"attention/{place}": row_T for place, row_T in enumerate(self._attention.values())}
        return TaskResult(MemoryTask(name, samples), next_state=(rows_by_place, {"tasks": list(self._attention)}))

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


def _check_same(settings: SAPTSettings, model: SharedLoraModel) -> None:
    for key in ("query_size", "temperature"):
        if model.describe()[key] != getattr(settings, key):
            raise ConfigError(
                f"method.{key}: {getattr(settings, key)}, but the model comes with a {key} of {model.describe()[key]}; "
                "keep that, or begin with the base model"
            )

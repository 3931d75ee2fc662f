"""``evaluate``: a model's scores on tasks, from Python."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, DataError
from seekr_cl.evaluation.answer_engines import TransformersEngine
from seekr_cl.evaluation.evaluation_config import EvaluationConfig
from seekr_cl.evaluation.task_scoring import Scored, check_prompts, require_apart, score_into, score_tasks
from seekr_cl.memory import model_hash
from seekr_cl.models.context import DEFAULT_LENGTH, context_length
from seekr_cl.models.loading import require_free
from seekr_cl.models.precision import computing_in
from seekr_cl.models.source import ModelSource, name_of
from seekr_cl.os_errors import named
from seekr_cl.settings import Ge, as_mapping, build, check_value
from seekr_cl.system.locks import hold
from seekr_cl.system.removal import remove_unfinished_inside
from seekr_cl.tasks import Encoder, Task
from seekr_cl.tasks.chat_template import ChatSettings


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's scores.

    Attributes:
        tasks: by name: ``metric``, ``score``, ``interval``, ``examples``, ``max_new_tokens``, ``sha256``.
        broken_off: by name: ``answers`` that fill ``max_new_tokens``, and ``references_longer`` than that.
        timing: ``new_tokens`` that were generated, ``seconds`` and ``tokens_per_second``.
    """

    tasks: dict[str, dict[str, Any]]
    broken_off: dict[str, dict[str, int]]
    timing: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each task, 0 to 100."""
        return {name: one["score"] for name, one in self.tasks.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% bootstrap interval of each score, over the task's examples."""
        return {name: (one["interval"][0], one["interval"][1]) for name, one in self.tasks.items()}


@named()
def evaluate(
    model: str | os.PathLike[str] | PreTrainedModel,
    tasks: Task | Sequence[Task],
    output: str | os.PathLike[str] | None = None,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    trust_remote_code: bool = False,
    chat: ChatSettings | None = None,
    evaluation: EvaluationConfig | Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Evaluation:
    """Generates an answer to every test prompt and scores it.

    Args:
        model: a model or adapter folder, a Hub name, or a loaded model, which stays as it is.
        tasks: each with a test split.
        output: folder for predictions and ``scores.json``; nothing is written without it.
        processing_class: tokenizer of a loaded model; default the one its ``name_or_path`` has.
        batch_size: the most prompts at a time; default as many as ``evaluation.batch_tokens`` allow.
        max_length: tokens of prompt and answer together; default the model's context.
        dtype: of the weights when a model is loaded.
        quantization: ``4bit`` loads the weights in four bits.
        trust_remote_code: run code that comes with the model.
        chat: how conversations are rendered and read.
        evaluation: ``dtype`` that answers are computed in and ``batch_tokens``, as in a run's file.
        resume: go on with what an interrupted call left in ``output``.

    Returns:
        Scores with intervals, by task.

    Raises:
        SeekrError: for bad input; nothing is written then.
    """
    asked = [tasks] if isinstance(tasks, Task) else list(tasks)
    _check(asked, batch_size, max_length)
    settings = build(EvaluationConfig, as_mapping(evaluation, EvaluationConfig, "evaluation"))
    if resume and output is None:
        raise ConfigError("resume: needs the output folder of the evaluation to go on with")
    folder = None if output is None else Path(output)
    if folder is not None and not resume:
        collectives.on_main(lambda: require_free(folder))
    source = ModelSource(model, processing_class)
    network, tokenizer = source.open(dtype, trust_remote_code, quantization)
    model_id = "" if folder is None else model_hash(network)
    if not source.loaded and torch.cuda.is_available():
        network.to("cuda")  # type: ignore[arg-type]
    context = context_length(network)
    if max_length is not None and context is not None and max_length > context:
        raise ConfigError(f"max_length: {max_length} is more than the model's context of {context} tokens")
    length = (context or DEFAULT_LENGTH) if max_length is None else max_length
    encoder = Encoder(tokenizer, length, chat=chat or ChatSettings())
    asked = [_with_room(task, length) for task in asked]
    engine = TransformersEngine(network, tokenizer, batch_size, settings.batch_tokens)
    with computing_in(network, settings.precision()), nullcontext() if folder is None else hold(folder, "evaluation"):
        if folder is None:
            check_prompts(engine, asked, encoder)
            scored = Scored()
            score_tasks(engine, asked, encoder, scored)
        else:
            if resume:
                collectives.on_main(lambda: remove_unfinished_inside(folder))
            scored = score_into(folder, engine, asked, encoder, model_id, {"model": name_of(model)})
    return Evaluation(scored.tasks, scored.broken_off, scored.timing)


def _with_room(task: Task, length: int) -> Task:
    """The task with answers short enough to leave room for a prompt."""
    if task.max_new_tokens < length:
        return task
    shorter = max(1, length // 2)
    warnings.warn(
        f"task '{task.name}': max_new_tokens {task.max_new_tokens} leaves no room for a prompt in {length} tokens, "
        f"using {shorter}",
        stacklevel=3,
    )
    return replace(task, max_new_tokens=shorter)


def _check(tasks: list[Any], batch_size: int | None, max_length: int | None) -> None:
    if not tasks:
        raise ConfigError("tasks: nothing to evaluate on; give at least one Task with a test split")
    for task in tasks:
        if not isinstance(task, Task):
            raise ConfigError(f"tasks: {task!r} is not a Task; make one with Task.load(data, name=...)")
        if not task.test:
            raise DataError(f"task '{task.name}' has no test examples; add a test split to it")
    require_apart(tasks, "tasks", "one")
    check_value(batch_size, Annotated[int | None, Ge(1)], "batch_size")
    check_value(max_length, Annotated[int | None, Ge(1)], "max_length")

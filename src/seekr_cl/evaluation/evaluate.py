"""Scoring a model on a task's test examples."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.errors import DataError
from seekr_cl.evaluation.generate import generate_answers
from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.memory.files import write_bytes
from seekr_cl.tasks import Encoder, Task
from seekr_cl.tasks.answers import get_extraction


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A task's result.

    Attributes:
        task: its name.
        metric: the metric's name.
        score: mean over the examples, 0 to 100.
        count: examples.
        predictions: ``prompt``, ``prediction``, ``references`` and ``score`` of each, and ``scored`` where
            only a part of the prediction was.
    """

    task: str
    metric: str
    score: float
    count: int
    predictions: list[dict[str, Any]]


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    encoder: Encoder,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> TaskScore:
    """Generates an answer to each test prompt and scores it.

    Raises:
        DataError: if the task has no test examples.
        ConfigError: for an unknown metric.
    """
    if not task.test:
        raise DataError(f"task '{task.name}' has no test examples; add a test file to it")
    metric = get_metric(task.metric)
    rendered = [encoder.render(example) for example in task.test]
    # The prompt leaves room for the answer, so the context is never overrun.
    prompts = [encoder.encode_prompt(example, reserve=task.max_new_tokens) for example in task.test]
    answers = generate_answers(model, tokenizer, prompts, task.max_new_tokens, batch_size, on_batch)
    references = [
        list(example.references) or [completion] for example, (_, completion) in zip(task.test, rendered, strict=True)
    ]
    texts = [prompt for prompt, _ in rendered]
    scored = [get_extraction(task.extract)(answer) for answer in answers]
    scores = metric.score(scored, references, texts)
    predictions = [
        {"prompt": prompt, "prediction": answer, "references": accepted, "score": score}
        | ({} if part == answer else {"scored": part})
        for prompt, answer, part, accepted, score in zip(texts, answers, scored, references, scores, strict=True)
    ]
    return TaskScore(task.name, metric.name, sum(scores) / len(scores), len(scores), predictions)


def write_predictions(folder: Path, score: TaskScore) -> Path:
    """Writes ``<task>.jsonl``, one prediction a line."""
    from seekr_cl.tasks.task import safe_name

    path = folder / f"{safe_name(score.task)}.jsonl"
    lines = (json.dumps(prediction, ensure_ascii=False) for prediction in score.predictions)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return path

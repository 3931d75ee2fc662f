"""Scoring a model on a task's test examples."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.distributed import collectives
from seekr_cl.errors import DataError
from seekr_cl.evaluation import answer_form
from seekr_cl.evaluation.answer_engines import Engine, TransformersEngine
from seekr_cl.evaluation.journal import Journal, answering, discard, merged, shard
from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.evaluation.prediction_files import read_rows, tally_of
from seekr_cl.evaluation.statistics import Interval, Tally, bootstrap
from seekr_cl.system.files import write_bytes
from seekr_cl.system.stop_requests import Stopped, raise_if_stop_requested
from seekr_cl.tasks import Encoder, Task
from seekr_cl.tasks.extraction import get_extraction
from seekr_cl.tasks.keys import DataWarning

OnBatch = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A task's result.

    Attributes:
        task: its name.
        metric: the metric's name.
        score: 0 to 100: the mean over the examples, unless the metric is one of a whole task.
        count: examples.
        predictions: ``prompt``, ``prediction``, ``references`` and ``score`` of each, ``scored`` where
            only a part of the prediction was, and ``faults`` of its form where there are any (``answer_form``).
        interval: 95% bootstrap interval of the score over the examples.
        references_longer: examples whose references do not fit into ``max_new_tokens``.
        broken_off: answers that fill ``max_new_tokens``.
        form: how many answers have the form they should, ``answer_form.summary``.
    """

    task: str
    metric: str
    score: float
    count: int
    predictions: list[dict[str, Any]]
    interval: Interval
    references_longer: int = 0
    broken_off: int = 0
    form: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where answers are written down as they come.

    Attributes:
        folder: the folder of the predictions.
        model: a hash of the model, so that another one's answers are never gone on with.
        rank: this process.
        world: processes that share the prompts.
    """

    folder: Path
    model: str
    rank: int = 0
    world: int = 1


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    encoder: Encoder,
    batch_size: int | None = None,
    on_batch: OnBatch | None = None,
    place: Place | None = None,
) -> TaskScore:
    """Generates an answer to each test prompt and scores it; several processes share the prompts.

    Raises:
        DataError: if the task has no test examples.
        ConfigError: for an unknown metric.
    """
    return score_task(TransformersEngine(model, tokenizer, batch_size), task, encoder, on_batch, place)


def score_task(
    engine: Engine, task: Task, encoder: Encoder, on_batch: OnBatch | None = None, place: Place | None = None
) -> TaskScore:
    """``evaluate_task`` with any engine.

    Of several processes each answers its share first (``answer_task``), and once all have, each scores everything.

    Raises:
        Stopped: of several processes by all, if ``on_batch`` stops one that a signal has asked to.
    """
    get_metric(task.metric)
    warn_of_long_references(task, encoder)
    try:
        answers = answer_task(engine, task, encoder, on_batch, place)
    except Stopped:
        if place is None or place.world == 1:
            raise
    if place is not None and place.world > 1:
        # Whoever was asked to stop tells the others here: they are waiting for its answers.
        raise_if_stop_requested()
        identity = _identity(engine, task, _prompts(task, encoder), place.model)
        collectives.barrier()
        answers = merged(place.folder, task.slug, identity, len(task.test))
        # Nobody removes a journal that another still reads.
        collectives.barrier()
    return score_answers(task, encoder, answers)


def answer_task(
    engine: Engine, task: Task, encoder: Encoder, on_batch: OnBatch | None = None, place: Place | None = None
) -> list[str]:
    """Answers a task's test prompts; with a place, this process's share of those that no journal answers yet.

    Args:
        engine: what generates.
        task: its prompts.
        encoder: how they become tokens.
        on_batch: called with the number of prompts done since the last call; what was answered earlier counts too.
        place: where answers are written down.

    Returns:
        The answers in the prompts' order; empty texts for prompts of other processes.

    Raises:
        DataError: if the task has no test examples.
    """
    prompts = _prompts(task, encoder)
    mine = shard([len(prompt) for prompt in prompts], place.rank, place.world) if place else range(len(prompts))
    journal = None
    answers: dict[int, str] = {}
    if place is not None:
        identity = _identity(engine, task, prompts, place.model)
        journal = Journal(place.folder, task.slug, identity, place.rank, place.world)
        answers = journal.answers
    todo = [index for index in mine if index not in answers]

    def note(indices: Sequence[int], texts: Sequence[str]) -> None:
        numbers = [todo[index] for index in indices]
        if journal is not None:
            journal.add(numbers, texts)
        else:
            answers.update(zip(numbers, texts))
        if on_batch is not None:
            on_batch(len(numbers))

    try:
        if on_batch is not None and len(todo) < len(mine):
            on_batch(len(mine) - len(todo))
        asked = [prompts[index] for index in todo]
        if _reads(task, encoder) and encoder.reader.needs_markers:
            engine.answer(asked, task.max_new_tokens, note, keep_markers=True)
        else:
            engine.answer(asked, task.max_new_tokens, note)
    finally:
        if journal is not None:
            journal.close()
    return [answers.get(index, "") for index in range(len(prompts))]


def score_answers(task: Task, encoder: Encoder, answers: Sequence[str]) -> TaskScore:
    """Scores answers to a task's test prompts."""
    metric = get_metric(task.metric)
    rendered = [encoder.render(example) for example in task.test]
    references = [
        # A turn may have no text of its own and call tools.
        list(example.references) or [encoder.reference(example) if example.messages and not completion else completion]
        for example, (_, completion) in zip(task.test, rendered, strict=True)
    ]
    # What a tokenizer normalizes can never be written as the reference has it.
    given, references = references, [[encoder.texts.as_read(one) for one in accepted] for accepted in references]
    texts = [prompt for prompt, _ in rendered]
    extract = get_extraction(task.extract)
    if _reads(task, encoder):
        read = [
            answer if example.messages is None else encoder.reader.read(answer, prompt)
            for example, answer, prompt in zip(task.test, answers, texts, strict=True)
        ]
        scored = [extract(answer) for answer in read]
    else:
        scored = [extract(answer) for answer in answers]
    scores = metric.score(scored, references, texts)
    cut = [encoder.texts.length(answer) >= task.max_new_tokens for answer in answers]
    in_json = answer_form.wants_json(references)
    faults = [
        answer_form.faults_of(answer, part, prompt, cut=broken, wants_json=in_json)
        for answer, part, prompt, broken in zip(answers, scored, texts, cut)
    ]
    predictions = [
        {"prompt": prompt, "prediction": answer, "references": accepted, "score": score}
        | ({} if part == answer else {"scored": part})
        | ({} if accepted == as_given else {"references_given": as_given})
        | ({"faults": wrong} if wrong else {})
        for prompt, answer, part, accepted, as_given, score, wrong in zip(
            texts, answers, scored, references, given, scores, faults, strict=True
        )
    ]
    tally = metric.tally(scored, references, scores)
    return TaskScore(
        task.name, metric.name, tally.score, len(scores), predictions, bootstrap(tally),
        long_references(task, encoder, [completion for _, completion in rendered])[0],
        sum(cut), answer_form.summary(faults),
    )  # fmt: skip


def long_references(task: Task, encoder: Encoder, completions: Sequence[str]) -> tuple[int, int]:
    """How many test examples have no accepted answer that fits into ``max_new_tokens``, and the longest's tokens.

    Args:
        task: with its test examples.
        encoder: counts the tokens.
        completions: of each test example, as it is rendered.
    """
    needed = []
    for example, completion in zip(task.test, completions, strict=True):
        accepted = example.references or [completion]
        # The end of the text is a token of its own.
        needed.append(1 + min(encoder.texts.length(one) for one in accepted))
    return sum(tokens > task.max_new_tokens for tokens in needed), max(needed, default=0)


def warn_of_long_references(task: Task, encoder: Encoder) -> None:
    """Warns before hours of answers that cannot be right because they are broken off."""
    count, longest = long_references(task, encoder, [encoder.render(example)[1] for example in task.test])
    if count:
        warnings.warn(
            f"task '{task.name}': {count} of {len(task.test)} references are longer than max_new_tokens "
            f"{task.max_new_tokens}, at which answers are truncated; set it to {longest} or more",
            DataWarning,
            stacklevel=2,
        )


def write_predictions(folder: Path, score: TaskScore) -> Path:
    """Writes ``<task>.jsonl``, one prediction a line; a journal of the answers is not needed any more."""
    from seekr_cl.tasks.task import safe_name

    slug = safe_name(score.task)
    path = folder / f"{slug}.jsonl"
    lines = (json.dumps(prediction, ensure_ascii=False) for prediction in score.predictions)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode(), private=True)
    discard(folder, slug)
    return path


def read_tally(path: Path, metric_name: str) -> Tally:
    """A predictions file as numbers.

    Raises:
        DataError: naming the file, if it is missing or damaged.
        ConfigError: for an unknown metric.
    """
    metric = get_metric(metric_name)
    return tally_of(path, read_rows(path), metric)


def settings_of(engine: Engine, encoder: Encoder) -> dict[str, Any]:
    """How answers were made, as the score file records it."""
    return engine.describe() | {
        "max_length": encoder.max_length,
        "prompt_boundary": encoder.prompt_boundary,
        "strip_thinking": encoder.chat.strip_thinking,
        "template_date": encoder.chat.date,
        "chat_template_kwargs": dict(encoder.chat.template_kwargs),
    }


def _reads(task: Task, encoder: Encoder) -> bool:
    """Whether answers are scored without think block and markers: in conversations, unless that is switched off."""
    return any(example.messages is not None for example in task.test) and encoder.chat.strip_thinking


def _prompts(task: Task, encoder: Encoder) -> list[list[int]]:
    if not task.test:
        raise DataError(f"task '{task.name}' has no test examples; add a test file to it")
    # The prompt leaves room for the answer, so the context is never overrun.
    return [encoder.encode_prompt(example, reserve=task.max_new_tokens) for example in task.test]


def _identity(engine: Engine, task: Task, prompts: list[list[int]], model: str) -> str:
    described = engine.describe()
    settings = {key: described[key] for key in ("engine", "dtype", "decoding")}
    if not described["same_for_any_batch_size"]:
        settings |= {key: described.get(key) for key in ("batch_size", "batch_tokens")}
    return answering(model, prompts, settings | {"max_new_tokens": task.max_new_tokens})

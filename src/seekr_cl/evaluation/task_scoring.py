"""Scoring one model on several tasks, written down as it goes, so that an interrupted scoring goes on."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, DataError, OutputError
from seekr_cl.evaluation.answer_engines import Engine, TransformersEngine
from seekr_cl.evaluation.evaluate import OnBatch, Place, TaskScore, score_task, settings_of, write_predictions
from seekr_cl.evaluation.metrics import get_metric
from seekr_cl.evaluation.speed import Speed
from seekr_cl.evaluation.statistics import CONVENTION
from seekr_cl.models.whole import require_known, token_rows
from seekr_cl.renamed import as_named_now
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.files import write_json
from seekr_cl.system.removal import is_regular, remove_file
from seekr_cl.system.stop_requests import raise_if_stop_requested
from seekr_cl.tasks import Encoder, Task
from seekr_cl.tasks.keys import DataWarning

SCORES = "scores.json"
PARTIAL = "partial.json"
GENERAL = "general.json"
_MAY_DIFFER = ("batch_size", "batch_tokens", "device", "version")


@dataclass(frozen=True, slots=True)
class Scored:
    """What scoring gave so far.

    Attributes:
        tasks: by name: ``metric``, ``score`` (0 to 100), ``interval`` (95%), ``examples``, ``max_new_tokens``,
            ``sha256`` of what was asked, ``format``: how many answers have the form they should.
        broken_off: by name: ``answers`` that fill ``max_new_tokens``, and ``references_longer`` than that.
        timing: ``new_tokens`` that were generated, ``seconds`` and ``tokens_per_second``; of calls that went on with
            each other together, empty where all answers were there already.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken_off: dict[str, dict[str, int]] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)

    def add(self, task: Task, score: TaskScore) -> None:
        """One more task."""
        self.tasks[task.name] = {
            "metric": task.metric,
            "score": score.score,
            "interval": score.interval.to_json(),
            "examples": score.count,
            "max_new_tokens": task.max_new_tokens,
            "sha256": scoring_hash(task),
            "format": score.form,
        }
        self.broken_off[task.name] = {"references_longer": score.references_longer, "answers": score.broken_off}

    def to_json(self) -> dict[str, Any]:
        """As the files hold it."""
        return {"tasks": self.tasks, "broken_off": self.broken_off, "timing": self.timing}

    def time(self, former: Mapping[str, Any], speed: Speed) -> None:
        """What was generated up to now.

        Args:
            former: ``timing`` of the calls before this one.
            speed: of this one, of all processes.
        """
        new, seconds = (former.get(key, 0) for key in ("new_tokens", "seconds"))
        self.timing.update(Speed(speed.new_tokens + new, speed.seconds + seconds).to_json())

    def warn_of_broken_off(self) -> None:
        """Says of which tasks answers may have been broken off."""
        for name, score in self.tasks.items():
            if count := self.broken_off.get(name, {}).get("answers", 0):
                warnings.warn(
                    f"task '{name}': {count} of {score['examples']} answers fill max_new_tokens "
                    f"{score['max_new_tokens']} and may be truncated",
                    DataWarning,
                    stacklevel=3,
                )


def scoring_hash(task: Task) -> str:
    """A hash of what a task is scored on: prompts, accepted answers, the longest answer."""
    texts = [[one.prompt, one.completion, one.references, one.messages, *one.told] for one in task.test]
    content = [task.max_new_tokens, texts, *([] if task.extract == "whole" else [task.extract])]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def require_apart(tasks: Sequence[Task], where: str, rename: str) -> None:
    """Makes sure that every task has a known metric and a file of predictions to itself, whatever the file system.

    Args:
        tasks: to be scored together.
        where: what messages call them.
        rename: what to give another name.

    Raises:
        ConfigError: naming the task or the metric.
    """
    slugs = [task.slug.casefold() for task in tasks]
    for task, slug in zip(tasks, slugs):
        if slugs.count(slug) > 1:
            raise ConfigError(f"{where}: two tasks are called '{task.name}'; rename {rename}")
        get_metric(task.metric)


def score_tasks(
    engine: Engine,
    tasks: Sequence[Task],
    encoder: Encoder,
    scored: Scored,
    place: Place | None = None,
    on_batch: OnBatch | None = None,
    note: Callable[[], None] = lambda: None,
) -> None:
    """Scores the tasks that ``scored`` does not have yet, and adds them to it.

    Args:
        engine: what generates.
        tasks: each with a test split.
        encoder: how prompts become tokens.
        scored: what is there already.
        place: where answers and predictions are written.
        on_batch: called with the number of prompts done since the last call; tasks that are there count too.
        note: called in process 0 after each task, once its predictions are written.

    Raises:
        DataError: for a prompt or task that cannot be scored.
        Stopped: after a stop request, with everything so far written.
    """
    former = dict(scored.timing)
    for task in tasks:
        if task.name in scored.tasks:
            if on_batch is not None:
                on_batch(len(task.test))
            continue
        score = score_task(engine, task, encoder, on_batch, place)
        scored.add(task, score)
        scored.time(former, engine.speed.of_all())
        if place is not None:
            collectives.on_main(partial(_write, place.folder, score, note))
        fault_point("run.task_evaluated")
        raise_if_stop_requested()


def check_prompts(engine: Engine, tasks: Sequence[Task], encoder: Encoder) -> None:
    """Tokenizes every prompt before the first is answered, so that the last one's trouble does not cost hours.

    Raises:
        DataError: naming the row that cannot be asked, or a token that the model has no vector for.
    """
    rows = token_rows(engine.model) if isinstance(engine, TransformersEngine) else None
    for task in tasks:
        for example in task.test:
            ids = encoder.encode_prompt(example, reserve=task.max_new_tokens)
            if rows is not None:
                require_known(ids, rows, f"task '{task.name}'")


def score_into(
    output: Path,
    engine: Engine,
    tasks: Sequence[Task],
    encoder: Encoder,
    model_id: str,
    described: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    on_batch: OnBatch | None = None,
) -> Scored:
    """Scores tasks into a folder: predictions, ``scores.json``; goes on with what an interrupted call left there.

    Args:
        output: the folder.
        engine: what generates.
        tasks: each with a test split.
        encoder: how prompts become tokens.
        model_id: a hash of the model.
        described: what ``scores.json`` says besides.
        settings: what decides answers beside engine and encoder.
        on_batch: called with the number of prompts done.

    Raises:
        ConfigError: if what is there was begun with another model, other tests or settings.
        OutputError: if something else is there.
    """
    check_prompts(engine, tasks, encoder)
    identity: dict[str, Any] = {
        "model_sha256": model_id,
        "tests": {task.name: {"metric": task.metric, "sha256": scoring_hash(task)} for task in tasks},
        "evaluation": settings_of(engine, encoder) | dict(settings or {}),
    }
    scored = Scored(**collectives.on_main_broadcast(lambda: begun(output, identity)))
    place = Place(output, model_id, collectives.rank(), collectives.world_size())
    score_tasks(
        engine,
        tasks,
        encoder,
        scored,
        place,
        on_batch,
        lambda: write_json(output / PARTIAL, identity | scored.to_json()),
    )
    content = {**described, "model_sha256": model_id, **scored.to_json(), "interval_level": CONVENTION}
    content["evaluation"] = identity["evaluation"] | {"prompts_cut": encoder.cut_count}

    def finish() -> None:
        write_json(output / SCORES, content)
        remove_file(output / PARTIAL, is_regular)

    collectives.on_main(finish)
    return scored


def begun(output: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted or finished evaluation in ``output`` has scored already; nothing in a new one.

    Raises:
        ConfigError: if it was begun with another model, other tests or settings.
        OutputError: if something else is there.
    """
    former = next((path for name in (SCORES, PARTIAL) if (path := output / name).is_file()), None)
    if former is None:
        if output.is_dir() and any(output.glob("*.json")) and not (output / GENERAL).is_file():
            raise OutputError(f"{output}: holds no evaluation; choose another --output")
        write_json(output / PARTIAL, identity | Scored().to_json())
        return {}
    content = read_scores(former)
    scores = content.get("tasks", {})
    tests = {name: {"metric": one["metric"], "sha256": one["sha256"]} for name, one in scores.items()}
    settings = dict(as_named_now(content.get("evaluation", {})))
    settings.pop("prompts_cut", None)
    now = identity["evaluation"]
    differ = [key for key in now if settings.get(key) != now[key] and key not in _MAY_DIFFER]
    if content.get("model_sha256") != identity["model_sha256"]:
        differ.insert(0, "model")
    if any(identity["tests"].get(name) != test for name, test in tests.items()):
        differ.append("tests")
    if differ:
        raise ConfigError(
            f"{former}: was begun with another {differ[0]}; resume with the same, or take another --output"
        )
    counts, timing = (one if isinstance(one := content.get(key), dict) else {} for key in ("broken_off", "timing"))
    timing = {key: number for key, number in timing.items() if isinstance(number, int | float)}
    return {"tasks": scores, "broken_off": counts, "timing": timing}


def read_scores(path: Path) -> dict[str, Any]:
    """A score file of an evaluation.

    Raises:
        DataError: if it is damaged.
    """
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    raise DataError(f"{path}: damaged; choose another --output, or remove it to begin again")


def _write(folder: Path, score: TaskScore, note: Callable[[], None]) -> None:
    write_predictions(folder, score)
    note()

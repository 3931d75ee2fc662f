"""Running a stream: a loop over ``learn`` with an evaluation after each task."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from seekr_cl.config.chat import set_template
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.config.tried import try_settings
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, OutputError
from seekr_cl.evaluation import (
    Place,
    ScoreMatrix,
    TransformersEngine,
    settings_of,
)
from seekr_cl.evaluation.predictions import describe_intervals
from seekr_cl.evaluation.speed import line
from seekr_cl.evaluation.task_scoring import Scored, read_scores, score_tasks, scoring_hash
from seekr_cl.memory import accepted_hashes, model_hash
from seekr_cl.memory.open_files import require_open_files
from seekr_cl.models.loading import require_free
from seekr_cl.models.precision import computing_in
from seekr_cl.os_errors import named
from seekr_cl.renamed import as_named_now
from seekr_cl.report.drawing import draw
from seekr_cl.report.verdict import VERDICT, Cost
from seekr_cl.report.verdicts import of_run
from seekr_cl.runs.card_scores import add_scores
from seekr_cl.runs.example_check import check_examples, check_tasks, stages_of
from seekr_cl.system import reading
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.files import keep_json, write_json
from seekr_cl.system.locks import hold, remove_left_over
from seekr_cl.system.modes import files_of_mode
from seekr_cl.system.removal import give_away, is_regular, remove_file, remove_made, remove_unfinished_inside
from seekr_cl.system.run_record import RECORD
from seekr_cl.system.stop_requests import raise_here_if_stop_requested, raise_if_stop_requested
from seekr_cl.tasks import Task
from seekr_cl.training.adapting import adapted, load_configured
from seekr_cl.training.as_begun import as_begun, training_of
from seekr_cl.training.checkpoint import Checkpoints
from seekr_cl.training.fitting import make_encoder
from seekr_cl.training.following import facts, following
from seekr_cl.training.learn import learn
from seekr_cl.training.learning import LearnResult, name_of
from seekr_cl.training.progress import console
from seekr_cl.training.run_identity import decisive, describe_method, difference
from seekr_cl.training.task_progress import open_memory
from seekr_cl.training.tracker import Tracker

LEDGER = "run.json"
SCORES = "scores.json"
PARTIAL = "partial.json"


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one stage gave: scores on the tasks, seconds of training, how it went, and the form of the answers."""

    scores: list[float]
    seconds: float
    evaluation: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    broken_off: dict[str, Any] = field(default_factory=dict)
    form: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """One run's folder.

        run.json                         what the run is: stream, method, settings, versions
        models/01-<task>/                the model after each task (or only the last: keep_models)
        memory/                          the replay memory
        evaluations/00-base/             scores and predictions of each stage
        checkpoints/                     the task that is being learned, until it is committed
        scores.json, scores.png          the score matrix
        record.jsonl                     when what happened, for `seekr watch` and the report
        verdict.json                     what was learned, and what was lost of it since

    Attributes:
        output: the folder.
        model: the base model's folder or Hub name.
        tasks: in order, each with a test split.
        config: all settings.
        probes: tests of what the base model could do, scored at every stage and never trained on.
        callbacks: the Trainer's.
        benchmark: which benchmark the tasks are, and what deviates from its paper; part of the scores.
        tracker: is told where the run is.
    """

    output: Path
    model: str
    tasks: Sequence[Task]
    config: SeekrConfig
    probes: Sequence[Task] = field(default_factory=list)
    callbacks: Sequence[TrainerCallback] = ()
    benchmark: Mapping[str, Any] | None = None
    tracker: Tracker = field(default_factory=Tracker)

    def start(self, resume: bool) -> None:
        """Makes the folder, or checks that what is there is this run.

        Raises:
            OutputError: if the folder holds something and ``resume`` is off.
            ConfigError: if it holds another run.
        """
        check_tasks(self.tasks, self.probes)
        ledger = self.output / LEDGER
        wanted = self._identity()
        if resume:
            self._remove_leftovers()
        if not resume or not ledger.exists():
            if self.output.is_dir() and ledger.exists():
                raise OutputError(
                    f"{self.output}: already holds a run; continue it with --resume or choose another --output"
                )
            require_free(self.output)
            model, tokens, _ = self._check_examples()
            wanted = {**wanted, "model_sha256": model, "tokenizer_sha256": tokens}
            versions = {"torch": torch.__version__, "transformers": transformers.__version__}
            sources = {"training_from": self.config.training_sources}
            write_json(ledger, {**wanted, **sources, "versions": versions, "machine": platform.platform()})
            return
        try:
            former = as_named_now(dict(reading.read_json(ledger)))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{ledger}: damaged ({error}); restore it from a copy or choose another --output"
            ) from error
        for key, value in wanted.items():
            if former.get(key) != value:
                which = f": {difference(key, former.get(key), value)}" if key in ("method", "training") else ""
                raise ConfigError(
                    f"{ledger}: the run there has another '{key}'{which}; resume with what it was started with, "
                    "or choose another --output"
                )
        if not (self.output / "memory").exists():
            # Later the memory's own hashes say so, and a base model that is not needed any more may be gone.
            model, tokens, older = self._check_examples()
            for key, values in (("model", [model]), ("tokenizer", [tokens, older])):
                if former.get(f"{key}_sha256") not in values:
                    raise ConfigError(f"{ledger}: the {key} has changed since the run was begun; restore it")

    def _remove_leftovers(self) -> None:
        """What a killed process had begun to write; the memory and the checkpoints see to their own."""
        for folder in [self.output, *self.output.glob("evaluations/*")]:
            if folder.is_dir():
                remove_unfinished_inside(folder)
        # The memory and the models may be held by another command that does not hold the run.
        remove_left_over([*self.output.glob(".*.lock"), *self.output.glob("models/.*.lock")])

    def execute(self) -> ScoreMatrix:
        """Learns and evaluates whatever is not done yet; returns the full matrix, which is also on disk."""
        started = time.perf_counter()
        matrix = ScoreMatrix(
            tasks=[task.name for task in self.tasks], metrics=[task.metric for task in self.tasks], base=None, rows=[]
        )
        matrix.extra = {probe.name: [] for probe in self.probes}
        matrix.joint = self.config.method.kind.multi_task
        current = self.model
        base_hash = reading.read_json(self.output / LEDGER).get("model_sha256")
        matrix.base = self._stage(0, "base", current, None, matrix, str(base_hash)).scores
        seconds, training = 0.0, list[dict[str, Any]]()
        for number, stage in enumerate(stages_of(self.tasks, self.config), start=1):
            self.tracker.number = number
            name = stage[0].slug if len(stage) == 1 else "all"
            folder = self.output / "models" / f"{number:02d}-{name}"
            saves = Checkpoints(self.output / "checkpoints")
            begun = saves.newest()
            memory = open_memory(self.output / "memory")
            learnt = None
            behind = begun is not None and begun.state["identity"]["generation"] < memory.generation
            # The memory went on without its model: the checkpoint that both came from gives it once more.
            lost = behind and memory.generation == number and collectives.broadcast_object(_is_missing(folder))
            if behind and memory.generation <= number and not lost:
                # Killed between committing and tidying up.
                collectives.on_main(saves.clear)
            if memory.generation < number or lost:
                if begun is None:
                    # A model without its generation of the memory, and no checkpoint left that it was written from.
                    collectives.on_main(partial(remove_made, folder))
                learnt = learn(
                    current, stage, memory, folder, self.config, self.callbacks, resume=True, checkpoints=saves,
                    tracker=self.tracker,
                )  # fmt: skip
                raise_if_stop_requested()
                if learnt.cut:
                    self._say(f"{name}: {learnt.cut} prompts truncated on the left to max_length")
            elif self.config.keep_models != "last":
                collectives.on_main(partial(give_away, folder))
            former, current = current, str(folder)
            made: Any = memory.tasks[-1].info.get("training", {})
            done = self._stage(number, name, current, learnt, matrix, str(memory.model_sha256), made)
            matrix.rows.append(done.scores)
            collectives.on_main(partial(self._note_scores, folder, f"{number:02d}-{name}", matrix))
            training.append({"task": name} | done.training)
            seconds += done.seconds
            if collectives.is_main():
                self._write(matrix, seconds, memory.num_bytes, done, training)
                if self.config.keep_models == "last" and former != self.model:
                    remove_made(Path(former))
        collectives.on_main(partial(give_away, Path(current)))
        self._say(f"{self.config.method.name}: done in {time.perf_counter() - started:.0f} s")
        return matrix

    def _check_examples(self) -> tuple[str, str, str]:
        """Tokenises everything once, so that a bad row in the last task is not found after days of training.

        Returns:
            The hashes of model and tokenizer, and the tokenizer's as older versions computed it.
        """
        try_settings(self.config)
        model, tokenizer = load_configured(self.model, self.config)
        set_template(tokenizer, self.config.chat_template)
        hashes = model_hash(model), *accepted_hashes(tokenizer)
        model = adapted(model, self.config, self.model)
        check_examples(model, tokenizer, self.config, self.tasks, self.probes)
        return hashes

    def _prompts(self) -> int:
        """Prompts of one evaluation."""
        return sum(len(task.test) for task in [*self.tasks, *self.probes])

    def work(self) -> dict[str, Any]:
        """What the run has before it, for its record: names and training of each stage, prompts of an evaluation."""
        usual, stages = float(self.config.num_train_epochs), stages_of(self.tasks, self.config)
        work = [sum(len(task.train) * (task.epochs or usual) for task in stage) for stage in stages]
        return {"tasks": [name_of(stage) for stage in stages], "work": work, "tests": self._prompts()}

    def _stage(
        self,
        number: int,
        name: str,
        folder: str,
        learnt: LearnResult | None,
        matrix: ScoreMatrix,
        model_hash: str,
        training: dict[str, Any] | None = None,
    ) -> _Stage:
        """Scores of one stage on all tasks; probes go into ``matrix.extra``. A stage that is done is read back."""
        place = self.output / "evaluations" / f"{number:02d}-{name}"
        done = place / SCORES
        if not collectives.broadcast_object(done.exists()):
            scored, evaluation = self._evaluate(
                name, folder, learnt, Place(place, model_hash, collectives.rank(), collectives.world_size())
            )
            scores = {task: one["score"] for task, one in scored.tasks.items()}
            content = {"scores": scores, "seconds": learnt.seconds if learnt else 0.0, "evaluation": evaluation}
            content |= {"intervals": {task: one["interval"] for task, one in scored.tasks.items()}}
            content |= {"broken_off": scored.broken_off, "timing": scored.timing}
            content |= {"format": {task: one.get("format", {}) for task, one in scored.tasks.items()}}
            content |= {"training": training} if training else {}
            collectives.on_main(partial(write_json, done, content))
            self.tracker.scores(scores)
            fault_point("run.stage_evaluated")
            shown = " ".join(f"{key} {value:.1f}" for key, value in scores.items())
            self._say(f"{self.config.method.name}: after {name}: {shown}")
            if said := line(scored.timing):
                self._say(f"{self.config.method.name}: {said}")
            if collectives.is_main():
                scored.warn_of_broken_off()
        collectives.on_main(partial(remove_file, place / PARTIAL, is_regular))
        content = reading.read_json(done)
        for probe in self.probes:
            matrix.extra[probe.name].append(content["scores"][probe.name])
        # Runs of former versions have no record of it.
        scores, evaluation = content["scores"], content.get("evaluation", {})
        in_order = [scores[task.name] for task in self.tasks]
        made = content.get("training", {}), content.get("broken_off", {}), content.get("format", {})
        return _Stage(in_order, content["seconds"], evaluation, *made)

    def _evaluate(
        self, name: str, folder: str, learnt: LearnResult | None, place: Place
    ) -> tuple[Scored, dict[str, Any]]:
        if learnt is not None and learnt.model is not None:
            model, tokenizer = learnt.model, learnt.tokenizer
        else:
            model, tokenizer = load_configured(folder, self.config)
        set_template(tokenizer, self.config.chat_template)
        model.to(self.config.device)  # type: ignore[arg-type]
        encoder = make_encoder(self.config, model, tokenizer)
        tasks = [*self.tasks, *self.probes]
        settings = self.config.evaluation
        engine = TransformersEngine(
            model, tokenizer, self.config.per_device_eval_batch_size, batch_tokens=settings.batch_tokens
        )
        unfinished = place.folder / PARTIAL
        scored = Scored(**collectives.broadcast_object(read_scores(unfinished) if unfinished.exists() else {}))
        done, total = 0, self._prompts()
        self.tracker.phase("evaluate", name, total)

        def answered(count: int) -> None:
            nonlocal done
            done = min(total, done + count * collectives.world_size())
            self.tracker.progress(done, total, last=done == total)
            raise_here_if_stop_requested()

        with computing_in(model, settings.precision(self.config)):
            score_tasks(
                engine, tasks, encoder, scored, place, answered, lambda: write_json(unfinished, scored.to_json())
            )
            return scored, settings_of(engine, encoder)

    def _note_scores(self, folder: Path, stage: str, matrix: ScoreMatrix) -> None:
        """The scores of a stage into the card of its model."""
        content = reading.read_json(self.output / "evaluations" / stage / SCORES)
        found = {
            task.name: {
                "score": content["scores"][task.name],
                "metric": task.metric,
                "interval": content.get("intervals", {}).get(task.name),
                "examples": len(task.test),
            }
            for task in [*self.tasks, *self.probes]
        }
        add_scores(folder, found, dict(zip([task.name for task in self.tasks], matrix.base or [])))

    def _write(
        self,
        matrix: ScoreMatrix,
        seconds: float,
        memory_bytes: int,
        last: _Stage,
        training: list[dict[str, Any]],
    ) -> None:
        content = (
            matrix.to_json()
            | self._benchmark()
            | {
                "method": describe_method(self.config),
                "seed": self.config.seed,
                "seconds": round(seconds, 2),
                "memory_bytes": memory_bytes,
                "training": training,
                "evaluation": last.evaluation,
                "broken_off": last.broken_off,
                "format": last.form,
                "tests": {
                    task.name: {
                        "metric": task.metric,
                        "examples": len(task.test),
                        "max_new_tokens": task.max_new_tokens,
                        "sha256": scoring_hash(task),
                    }
                    for task in [*self.tasks, *self.probes]
                },
                "intervals": describe_intervals(self.output, matrix),
            }
        )
        if self._shows_more(len(content["matrix"])):
            # A run that is done and asked for again: what is there is not replaced by its own beginning.
            return
        verdict = of_run(self.output, scores=content)
        # What it cost stands beside it already.
        content["verdict"] = replace(verdict, cost=Cost()).to_json()
        keep_json(self.output / SCORES, content)
        write_json(self.output / VERDICT, verdict.to_json())
        draw("plot_matrix", matrix, self.output / "scores.png")

    def _shows_more(self, rows: int) -> bool:
        """Whether scores of more rows are written already."""
        try:
            return len(json.loads((self.output / SCORES).read_text(encoding="utf-8"))["matrix"]) > rows
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _benchmark(self) -> dict[str, Any]:
        return {} if self.benchmark is None else {"benchmark": json.loads(json.dumps(self.benchmark))}

    def _identity(self) -> dict[str, Any]:
        return self._benchmark() | {
            "model": self.model,
            "method": describe_method(self.config),
            "seed": self.config.seed,
            "training": decisive(self.config),
            "tasks": [
                {"name": task.name, "metric": task.metric, "epochs": task.epochs, "fingerprint": task.fingerprint()}
                | {"test": scoring_hash(task)}
                for task in self.tasks
            ],
            "probes": [{"name": probe.name, "test": scoring_hash(probe)} for probe in self.probes],
        }

    def _say(self, line: str) -> None:
        if self.config.progress != "none" and collectives.is_main():
            console().print(line, soft_wrap=True, markup=False)


def _is_missing(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@named()
def run(
    model: str | Path,
    tasks: Sequence[Task],
    output: str | Path,
    config: SeekrConfig,
    *,
    probes: Sequence[Task] = (),
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    benchmark: Mapping[str, Any] | None = None,
) -> ScoreMatrix:
    """Learns a stream of tasks and evaluates after each.

    Args:
        model: base model, folder or Hub name.
        tasks: in order; each needs a test split.
        output: the run's folder.
        config: all settings. A resumed run takes over batch and precision that a machine chose for it.
        probes: scored at every stage and never trained on.
        resume: continue the run in ``output`` where it was interrupted: in the middle of a task or of an evaluation.
        callbacks: the Trainer's, for every task.
        benchmark: what ``BenchmarkUse.describe`` says of the tasks; goes into ``run.json`` and ``scores.json``.

    Returns:
        The score matrix, also written to ``scores.json``.

    Raises:
        SeekrError: for bad input; what is on disk stays.
        Stopped: after SIGTERM or Ctrl-C in a command, with the state saved.
    """
    require_open_files()
    if resume:
        config = as_begun(config, collectives.on_main_broadcast(lambda: training_of(Path(output) / LEDGER)))
    tracker = Tracker(config.progress)
    one = Run(Path(output), str(model), tasks, config, probes, callbacks, benchmark, tracker)
    with files_of_mode(config.memory.file_mode()), hold(one.output, "run"):
        collectives.on_main(lambda: one.start(resume))
        tracker.logs = one.output / "logs"
        tracker.write_to(one.output / RECORD)
        with following(tracker):
            tracker.begin("run", **facts(str(model), config), **one.work())
            return one.execute()

"""Learning one task: model and memory in, model and next generation of the memory out."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, OutputError
from seekr_cl.memory import ReplayMemory, model_hash
from seekr_cl.memory.lineage import GENERATIONS
from seekr_cl.memory.open_files import require_open_files
from seekr_cl.models.loading import refuse_unwritable, require_free
from seekr_cl.models.source import ModelSource
from seekr_cl.models.trained_part import thaw
from seekr_cl.os_errors import named
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.locks import hold
from seekr_cl.system.modes import files_of_mode
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.system.removal import give_away
from seekr_cl.tasks import Task
from seekr_cl.training import phases
from seekr_cl.training.adapting import load_configured, require_base
from seekr_cl.training.as_begun import as_begun
from seekr_cl.training.checkpoint import Checkpoint, Checkpoints
from seekr_cl.training.following import followed, take_in
from seekr_cl.training.given import as_tasks, require_config
from seekr_cl.training.learning import LOG, Learning, LearnResult, name_of
from seekr_cl.training.places import check_places, checkpoints_of, places_of, refuse_overlap
from seekr_cl.training.probing import RETENTION
from seekr_cl.training.run_identity import check_same_learning, task_identity
from seekr_cl.training.task_progress import before_lost_model, open_memory, tidy_up
from seekr_cl.training.tracker import Tracker
from seekr_cl.training.train_phase import train


@named()
def learn(
    model: str | os.PathLike[str] | PreTrainedModel,
    task: Any,
    memory: str | os.PathLike[str] | ReplayMemory,
    output: str | os.PathLike[str],
    config: SeekrConfig,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    checkpoints: Checkpoints | None = None,
    tracker: Tracker | None = None,
) -> LearnResult:
    """Teaches a model one task without forgetting the earlier ones.

    Reads model and memory, trains, writes the new model to ``output`` and the next generation of the memory. Nothing
    but these two folders connects one call to the next: two calls on two days equal one run of two tasks.

    Args:
        model: model folder, Hub name, or a loaded model, which is trained in place (``dtype`` is about loading).
        task: a ``Task``, or what ``Task.load`` takes: rows, a ``datasets.Dataset``, a file. A list of tasks only for a
            method that trains on all at once.
        memory: memory folder (missing: a new one) or an opened memory.
        output: folder for the new model; must be missing or empty.
        config: all settings. A resumed learning takes over batch and precision that a machine chose for it.
        callbacks: the Trainer's, beside the library's own progress.
        processing_class: tokenizer of the model; default the one that comes with it.
        resume: go on from the newest checkpoint of a learning of this task that was interrupted; begin if there is
            none; a learning that is complete is not repeated.
        checkpoints: where the state is saved meanwhile; default ``<output>.checkpoints``, removed at the end.
        tracker: is told where the learning is; default one that shows it, and writes it to ``record.jsonl`` of the
            output.

    Raises:
        SeekrError: for bad input; the output is not written and the memory stays as it was.
        Stopped: after SIGTERM or Ctrl-C in a command, with the state saved.
    """
    tasks = as_tasks(task)
    require_config(config)
    source = ModelSource(model, processing_class)
    collectives.on_main(lambda: require_base(source, config))
    if len(tasks) > 1 and not config.method.kind.multi_task:
        raise ConfigError(f"method: {config.method.name} learns one task at a time, {len(tasks)} were given")
    output = Path(output)
    if output.name in ("", ".."):  # what is beside a folder is found by its name
        output = Path(os.path.abspath(output))
    saves = checkpoints or Checkpoints(checkpoints_of(output))
    place = memory.path if isinstance(memory, ReplayMemory) else Path(memory)
    require_open_files()
    collectives.on_main(lambda: refuse_overlap(place, output, saves.place))
    if not resume:
        collectives.on_main(lambda: require_new(output, saves))
    with files_of_mode(config.memory.file_mode()), hold(output, "output"):
        begun = saves.newest() if resume else None
        if begun is not None:
            config = as_begun(config, begun.state["identity"].get("training"))
            check_places(begun.state.get("places"), places_of(place, output, saves.place), saves.place)
            check_same_learning(begun.state["identity"], task_identity(tasks, config), str(saves.place))
        with hold(place, "memory"):
            store = memory if isinstance(memory, ReplayMemory) else open_memory(place)
            collectives.on_main(partial(refuse_mount, output))
            for folder in (place, place / GENERATIONS, output):
                collectives.on_main(partial(refuse_unwritable, folder))
            if resume:
                done = _finished(source, tasks, store, output, config, begun, str(saves.place))
                if done is not None:
                    collectives.on_main(lambda: _complete(output, saves, config, checkpoints is None))
                    return done
            former = before_lost_model(name_of(tasks), tasks[0].fingerprint(), store, output, begun)
            here, gone = (store, None) if former is None else (former, store)
            # A run scores the tests of every task itself.
            probed = config.retention.count(evaluated=checkpoints is not None)
            with followed(tracker, source, tasks, place, output, config, saves) as told:
                state = Learning(
                    source, tasks, here, output, config, callbacks, saves, begun, resume, gone, probed, told
                )
                try:
                    learnt = _learn(state)
                finally:
                    thaw(getattr(state, "network", None), state.frozen)
            collectives.on_main(lambda: _complete(output, saves, config, checkpoints is None))
            fault_point("learn.cleared")
            return learnt


def _complete(output: Path, saves: Checkpoints, config: SeekrConfig, alone: bool) -> None:
    """Model and memory are there: the model is its owner's now, unless a run will remove it when the next is there."""
    if alone or config.keep_models != "last":
        give_away(output)
    take_in(output)
    tidy_up(saves)


def require_new(output: Path, saves: Checkpoints) -> None:
    """Refuses an output folder that holds something, or into which a learning was interrupted.

    Raises:
        OutputError: saying how to go on.
    """
    require_free(output)
    if saves.any():
        raise OutputError(
            f"{saves.place}: holds an interrupted learning into {output.name}; continue with --resume, or remove that "
            "folder to begin again"
        )


def _learn(state: Learning) -> LearnResult:
    """The phases of one learning, in order."""
    tell = partial(state.tracker.phase, task=state.name)
    tell("load")
    phases.load(state)
    phases.clear_leftovers(state)
    tell("prepare")
    phases.prepare(state)
    phases.probe(state)
    with phases.attached_method(state):
        phases.rewrite(state)
        phases.score_general(state)
        phases.choose(state)
        if not state.progress.phase_done("scored"):
            tell("train")
            train(state)
            tell("score")
            phases.score(state)
    tell("write")
    return phases.write(state)


def _finished(
    source: ModelSource,
    tasks: list[Task],
    store: ReplayMemory,
    output: Path,
    config: SeekrConfig,
    begun: Checkpoint | None,
    where: str,
) -> LearnResult | None:
    """What was learned, if the process was killed after everything had been written."""
    if begun is not None and begun.state["identity"]["generation"] == store.generation:
        return None
    if not store.tasks or not (output / LOG).is_file():
        return None
    if (store.tasks[-1].name, store.tasks[-1].info.get("fingerprint")) != (name_of(tasks), tasks[0].fingerprint()):
        return None
    if begun is not None:
        former, _ = load_configured(source, config)
        check_same_learning(begun.state["identity"], {"model": model_hash(former)}, where)
    network, tokenizer = load_configured(output, config)
    if model_hash(network) != store.model_sha256:
        return None
    log = json.loads((output / LOG).read_text(encoding="utf-8"))
    training: Any = store.tasks[-1].info.get("training", {})
    probes = output / RETENTION
    found = json.loads(probes.read_text(encoding="utf-8")) if probes.is_file() else {}
    return LearnResult(network, tokenizer, 0.0, log[-1]["step"], log, 0, training, found)

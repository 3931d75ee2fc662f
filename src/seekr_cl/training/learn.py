"""Learning one task: model and memory in, model and next generation of the memory out."""

import copy
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from seekr_cl import ranks
from seekr_cl.config.chat import set_template
from seekr_cl.config.rates import record, task_rate
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.config.tried import try_settings
from seekr_cl.distributed.dtensor import is_sharded, reshard, whole
from seekr_cl.distributed.engines import keeps_shards, plain
from seekr_cl.errors import ConfigError, OutputError
from seekr_cl.memory import (
    MemoryTask,
    MethodState,
    ReplayMemory,
    TaskSamples,
    accepted_hashes,
    model_hash,
)
from seekr_cl.memory.lineage import GENERATIONS
from seekr_cl.memory.open_files import require_open_files
from seekr_cl.methods import Context, Layout, Method
from seekr_cl.models.loading import (
    load_model,
    pad_id,
    refuse_unwritable,
    require_free,
    save_model,
    written_state,
)
from seekr_cl.models.merging import dtype_of, merged_from, note_origin
from seekr_cl.models.peft_adapters import is_prompt_learning
from seekr_cl.models.source import ModelSource
from seekr_cl.os_errors import named
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.forgetting_curve import Reviews, UpdateClock
from seekr_cl.replay.schedule import build_schedule, review_rounds
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.files import write_json
from seekr_cl.system.locks import hold
from seekr_cl.system.modes import files_of_mode
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.system.removal import give_away, remove_made
from seekr_cl.system.stop_requests import stop_if_asked
from seekr_cl.tasks import Encoded, Task
from seekr_cl.training import fsdp_loading as once
from seekr_cl.training.adapting import adapted, require_base
from seekr_cl.training.checkpoint import Checkpoint, Checkpoints
from seekr_cl.training.context_check import check_memory, check_task
from seekr_cl.training.fitting import InertWarning, fitting, make_encoder
from seekr_cl.training.given import as_tasks, require_config
from seekr_cl.training.new_examples import new_examples
from seekr_cl.training.optimizer_carryover import Carry, check_carry
from seekr_cl.training.places import check_places, places_of, refuse_overlap
from seekr_cl.training.precision import warn_if_updates_vanish
from seekr_cl.training.progress import TrainingProgress, drop_printers
from seekr_cl.training.run_identity import check_same_learning, describe_method, learning_identity, task_identity
from seekr_cl.training.sample_selection import (
    check_budget,
    choose_samples,
    chooses_after_training,
    general_samples,
    previous_state,
    replay_weights,
    within_budget,
)
from seekr_cl.training.task_progress import (
    Standing,
    before_lost_model,
    is_uncommitted,
    make_room,
    open_memory,
    result_state,
    tidy,
    tidy_up,
)
from seekr_cl.training.trainer import SeekrTrainer
from seekr_cl.training.trainer_state import take_weights

GENERAL = "general"
LOG = "training_log.json"
_SEED_STEP = 1_000_003
"""Distance between two tasks' seeds: far more than any epoch count added to a seed."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What learning a task gave.

    Attributes:
        model: the model, in memory; ``None`` where each process has only its rows of it.
        tokenizer: its tokenizer.
        seconds: training and scoring, without loading.
        steps: optimizer steps.
        log: the Trainer's log lines: loss terms, gradient shares.
        cut: how many prompts lost tokens on their left.
        training: learning rate, scheduler, optimizer and steps, and where each comes from; the memory has it too.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    seconds: float
    steps: int
    log: list[dict[str, Any]]
    cut: int
    training: dict[str, Any] = field(default_factory=dict)


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
) -> Learnt:
    """Teaches a model one task without forgetting the earlier ones.

    Reads model and memory, trains, writes the new model to ``output`` and the next generation of the memory. Nothing
    but these two folders connects one call to the next: two calls on two days equal one run of two tasks.

    Args:
        model: model folder, Hub name, or a loaded model, which is trained in place (``dtype`` is about loading).
        task: a ``Task``, or what ``Task.load`` takes: rows, a ``datasets.Dataset``, a file. A list of tasks only for a
            method that trains on all at once.
        memory: memory folder (missing: a new one) or an opened memory.
        output: folder for the new model; must be missing or empty.
        config: all settings.
        callbacks: the Trainer's, beside the library's own progress.
        processing_class: tokenizer of the model; default the one that comes with it.
        resume: go on from the newest checkpoint of a learning of this task that was interrupted; begin if there is
            none; a learning that is complete is not repeated.
        checkpoints: where the state is saved meanwhile; default ``<output>.checkpoints``, removed at the end.

    Raises:
        SeekrError: for bad input; the output is not written and the memory stays as it was.
        Stopped: after SIGTERM or Ctrl-C in a command, with the state saved.
    """
    tasks = as_tasks(task)
    require_config(config)
    source = ModelSource(model, processing_class)
    ranks.first(lambda: require_base(source, config))
    if len(tasks) > 1 and not config.method.kind.multi_task:
        raise ConfigError(f"method: {config.method.name} learns one task at a time, {len(tasks)} were given")
    output = Path(output)
    if output.name in ("", ".."):  # what is beside a folder is found by its name
        output = Path(os.path.abspath(output))
    saves = checkpoints or Checkpoints(output.parent / f"{output.name}.checkpoints")
    place = memory.path if isinstance(memory, ReplayMemory) else Path(memory)
    require_open_files()
    ranks.first(lambda: refuse_overlap(place, output, saves.place))
    if not resume:
        ranks.first(lambda: _require_new(output, saves))
    with files_of_mode(config.memory.file_mode()), hold(output, "output"):
        begun = saves.newest() if resume else None
        if begun is not None:
            check_places(begun.state.get("places"), places_of(place, output, saves.place), saves.place)
            check_same_learning(begun.state["identity"], task_identity(tasks, config), str(saves.place))
        with hold(place, "memory"):
            store = memory if isinstance(memory, ReplayMemory) else open_memory(place)
            ranks.first(partial(refuse_mount, output))
            for folder in (place, place / GENERATIONS, output):
                ranks.first(partial(refuse_unwritable, folder))
            if resume:
                done = _finished(source, tasks, store, output, config, begun, str(saves.place))
                if done is not None:
                    ranks.first(lambda: _complete(output, saves, config, checkpoints is None))
                    return done
            former = before_lost_model(_name(tasks), tasks[0].fingerprint(), store, output, begun)
            here, gone = (store, None) if former is None else (former, store)
            learnt = _learn(source, tasks, here, output, config, callbacks, saves, begun, resume, gone)
            ranks.first(lambda: _complete(output, saves, config, checkpoints is None))
            fault_point("learn.cleared")
            return learnt


def _complete(output: Path, saves: Checkpoints, config: SeekrConfig, alone: bool) -> None:
    """Model and memory are there: the model is its owner's now, unless a run will remove it when the next is there."""
    if alone or config.keep_models != "last":
        give_away(output)
    tidy_up(saves)


def _require_new(output: Path, saves: Checkpoints) -> None:
    require_free(output)
    if saves.any():
        raise OutputError(
            f"{saves.place}: holds an interrupted learning into {output.name}; go on with --resume, or remove that "
            "folder to begin again"
        )


def _learn(
    source: ModelSource,
    tasks: list[Task],
    store: ReplayMemory,
    output: Path,
    config: SeekrConfig,
    callbacks: Sequence[TrainerCallback],
    saves: Checkpoints,
    begun: Checkpoint | None,
    resume: bool,
    committed: ReplayMemory | None = None,
) -> Learnt:
    """The phases: general data, choosing and looking at samples, training, scoring, writing.

    ``committed`` is the memory with what is learnt here in it, where only its model is missing.
    """
    kept_of_each = try_settings(config)
    loads_once = once.is_asked() and not source.loaded
    if loads_once and (hindrance := once.hindrance(config)):
        warnings.warn(
            f"fsdp_cpu_ram_efficient_loading: no effect with {hindrance}, every process loads the whole model",
            InertWarning,
            stacklevel=2,
        )
        loads_once = False
    empty = loads_once and not ranks.is_first()
    network, tokenizer = source.open(config.dtype, config.trust_remote_code, config.quantization, empty)
    set_template(tokenizer, config.chat_template)
    model_sha = ranks.once(partial(model_hash, network)) if loads_once else model_hash(network)
    tokens_sha, former_sha = accepted_hashes(tokenizer)
    identity = learning_identity(tasks, store, config, model_sha, tokens_sha)
    if begun is not None:
        if begun.state["identity"].get("tokenizer") == former_sha:
            identity["tokenizer"] = former_sha
        check_same_learning(begun.state["identity"], identity, str(saves.place))
    weights_dtype = dtype_of(network)
    store.check_belongs(
        model_sha, tokens_sha, former_sha256=former_sha, merged_from=merged_from(source.name), dtype=weights_dtype
    )
    check_memory(store, network)
    ranks.first(lambda: tidy(store.path))
    if resume:
        ranks.first(lambda: make_room(output))
    network = adapted(network, config, source.name)
    if config.carry_optimizer:
        check_carry(Path(source.name), network, kept_of_each)
    warn_if_updates_vanish(network, config)
    if loads_once:
        once.shard(network, config)
    else:
        network.to(config.device)

    number = sum(not kept.info.get(GENERAL) for kept in store.tasks) + 1
    context = Context(
        model=network.eval(),
        layout=Layout(pad_id(tokenizer), _padding_side(network, config), config.pad_multiple or 1),
        importance=store.importance,
        seed=config.seed + number * _SEED_STEP,
        warn=lambda message: warnings.warn(message, InertWarning, stacklevel=2),
        signal_dtype=config.signal_dtype or "int8",
        tokenizer=tokenizer,
        task=_name(tasks),
    )
    encoder = make_encoder(config, network, tokenizer)
    trained = [fitting(one, encoder, config) for one in tasks]
    for one, (examples, encoded) in zip(tasks, trained):
        check_task(network, config, one, examples, encoded)
    context.examples = [item for _, encoded in trained for item in encoded]
    context.previous_state = previous_state(config, store, context.warn)
    method = config.method.kind(config.method.settings, context)
    try:
        places = places_of(store.path, output, saves.place)
        stand = Standing(saves, identity, places, method, begun)
        learned = [part for _, part in trained]
        if not stand.reached("scored"):
            learned = new_examples(method, tasks, learned, encoder.max_length)
            context.examples = [item for part in learned for item in part]
        if not stand.reached("general"):
            general = general_samples(config, store, encoder, GENERAL)
            if general:
                method.before_task(general)
                stand.new_tasks.append(_described(method.after_task(GENERAL, general).task, info={GENERAL: True}))
                stand.save("general")
        if not stand.reached("prepared"):
            # Where the trained model chooses, as many stand for those samples until then.
            meanwhile = "random" if chooses_after_training(config) else None
            stand.kept = choose_samples(config, *trained[0], encoder, context, meanwhile) if method.keeps else []
        if not stand.reached("scored"):
            trainer = _train(config, tasks, learned, store, stand, context, Path(source.name), callbacks)
            context.model.eval()
            if method.keeps and chooses_after_training(config):
                stand.kept = choose_samples(config, *trained[0], encoder, context)
            result = method.after_task(_name(tasks), stand.kept)
            reshard(network)
            made = record(config, trainer.args, trainer.rate_source, trainer.state.global_step)
            stand.new_tasks.append(_described(result.task, info=_facts(tasks, config) | {"training": made}))
            carry = _carry(config, context.model, trainer)
            left, left_tensors = result_state(result)
            content = left | {
                "log": trainer.state.log_history,
                "steps": trainer.state.global_step,
                "carries": carry is not None,
            }
            parts = left_tensors | {
                "weights": take_weights(context.model),
                "carry": carry.tensors if carry is not None else {},
            }
            stand.save("scored", content, parts, keep_shards=keeps_shards(trainer))
    finally:
        method.close()

    ready = stand.ready(context.model)
    context.model.zero_grad(set_to_none=True)
    network = method.finished_model()

    def add_files(folder: Path) -> None:
        write_json(folder / LOG, ready.log)
        if ready.carry is not None:
            ready.carry.save(folder)
        note_origin(folder, network, new_model, config.quantization)

    new_model = model_hash(network, whole)
    sharded = any(map(is_sharded, network.parameters()))
    tensors = plain(written_state(network)) if sharded else None
    keep, new_tasks = within_budget(config, store, stand.new_tasks, context)

    def write() -> None:
        if committed is not None and committed.model_sha256 != new_model:
            raise OutputError(
                f"{committed.path}: generation {committed.generation} belongs to another model than {saves.place} gives"
            )
        save_model(output, network, tokenizer, add_files, tensors, provisional=True)
        fault_point("learn.model_saved")
        if committed is not None:
            return
        former = store.current
        try:
            store.commit(
                new_tasks,
                keep=keep,
                importance=context.importance if ready.importance is None else ready.importance,
                model_sha256=new_model,
                tokenizer_sha256=tokens_sha,
                method=describe_method(config),
                model_folder=output,
                method_state=ready.next_state and MethodState(config.method.name, *ready.next_state),
                dtype=weights_dtype,
            )
        except BaseException:
            # A model without its generation of the memory would only stand in the way of the next try. One whose
            # generation is there, or may be, stays: with its checkpoint a resumed command finishes either way.
            if is_uncommitted(store.path, former):
                remove_made(output)
            raise
        fault_point("learn.committed")

    ranks.first(write)
    if not ranks.is_first():
        store.reload()
    training: Any = new_tasks[-1].info.get("training", {})
    if loads_once:
        return Learnt(None, tokenizer, stand.seconds, ready.steps, ready.log, encoder.cut_count, training)
    if sharded:
        network, _ = load_model(output, config.dtype, config.trust_remote_code, config.quantization)
    return Learnt(network, tokenizer, stand.seconds, ready.steps, ready.log, encoder.cut_count, training)


def _padding_side(network: Any, config: SeekrConfig) -> str:
    """PEFT counts padding on the left as distance between its prompt and the text, so a prompt has none there."""
    return "right" if is_prompt_learning(network) else config.padding_side or "right"


def _finished(
    source: ModelSource,
    tasks: list[Task],
    store: ReplayMemory,
    output: Path,
    config: SeekrConfig,
    begun: Checkpoint | None,
    where: str,
) -> Learnt | None:
    """What was learnt, if the process was killed after everything had been written."""
    if begun is not None and begun.state["identity"]["generation"] == store.generation:
        return None
    if not store.tasks or not (output / LOG).is_file():
        return None
    if (store.tasks[-1].name, store.tasks[-1].info.get("fingerprint")) != (_name(tasks), tasks[0].fingerprint()):
        return None
    if begun is not None:
        former, _ = source.open(config.dtype, config.trust_remote_code, config.quantization)
        check_same_learning(begun.state["identity"], {"model": model_hash(former)}, where)
    network, tokenizer = load_model(output, config.dtype, config.trust_remote_code, config.quantization)
    if model_hash(network) != store.model_sha256:
        return None
    log = json.loads((output / LOG).read_text(encoding="utf-8"))
    training: Any = store.tasks[-1].info.get("training", {})
    return Learnt(network, tokenizer, 0.0, log[-1]["step"], log, 0, training)


def _facts(tasks: list[Task], config: SeekrConfig) -> dict[str, object]:
    facts: dict[str, object] = {
        "examples": sum(len(one.train) for one in tasks),
        "fingerprint": tasks[0].fingerprint(),
        "metric": tasks[0].metric,
    }
    return facts | ({"choice": config.replay.choice} if config.method.kind.keeps else {})


def _name(tasks: list[Task]) -> str:
    return "+".join(one.name for one in tasks)


def _carry(config: SeekrConfig, network: PreTrainedModel, trainer: SeekrTrainer) -> Carry | None:
    if not config.carry_optimizer:
        return None
    leak = getattr(config.method.settings, "gradient_leak", False)
    return Carry.take(network, trainer.optimizer, gradients=leak, steps=config.gradient_accumulation_steps)


def _described(task: MemoryTask, info: dict[str, object]) -> MemoryTask:
    return replace(task, info=info)


def _train(
    config: SeekrConfig,
    tasks: list[Task],
    encoded: list[list[Encoded]],
    store: ReplayMemory,
    stand: Standing,
    context: Context,
    source: Path,
    callbacks: Sequence[TrainerCallback],
) -> SeekrTrainer:
    method, kept = stand.method, stand.kept
    held = [*store.tasks, *stand.new_tasks] if method.keeps else []
    check_budget(config, store, kept, context.warn)
    old = method.replay_source(held)
    replay = TaskSamples(old if method.replays else [])
    settings = config.replay
    official = config.order == "official"
    order: dict[str, Any] = {
        "num_replay": len(replay),
        "replay_batch_size": (settings.batch_size or config.per_device_train_batch_size) * ranks.count(),
        "seed": 0 if official else context.seed,
        "reshuffle": not official,
        "replay_weights": replay_weights(config, replay, encoded[0], context),
    }
    schedule = build_schedule(
        epochs_of=[float(one.epochs or config.num_train_epochs) for one, part in zip(tasks, encoded) for _ in part],
        batch_size=config.per_device_train_batch_size * ranks.count(),
        cadence=settings,
        joint=settings.step == "joint",
        **order,
    )
    reviews = Reviews(UpdateClock(settings.day_steps), review_rounds(**order)) if settings.clock == "updates" else None
    comes = any(micro.replay for micro in schedule)
    if reviews is not None:
        comes = math.ceil(len(schedule) / config.gradient_accumulation_steps) >= settings.day_steps
    _warn_if_inert(method, store, replay, comes, kept, context)
    if not stand.reached("prepared"):
        method.before_task(kept)
        stand.save("prepared")
    cache = getattr(context.model.config, "use_cache", None)
    args = copy.copy(config)
    args.num_train_epochs = 1
    args.learning_rate, rate_source = task_rate(config, context.model, later=context.previous_state is not None)
    args.seed = context.seed % (1 << 32)
    reshard(context.model)
    share = (ranks.own(), ranks.count())
    trainer = SeekrTrainer(
        context.model,
        args,
        ScheduledBatches(schedule, list(context.examples), replay, method, context.layout, share),
        method,
        Carry.load(source) if config.carry_optimizer else None,
        stand.save_training,
        stand.begun if stand.reached("training") else None,
        reviews if len(replay) else None,
        callbacks=[TrainingProgress(_name(tasks), config.progress), *callbacks],
    )
    trainer.rate_source = rate_source
    if settings.over_tasks == "sum":
        trainer.replay_factor = max(1, sum(bool(len(task.samples)) for task in replay.tasks))
    drop_printers(trainer)
    trainer.train()
    # The Trainer switches the cache off in the config and would have it written so, slowing whoever generates.
    context.model.config.use_cache = cache
    stop_if_asked()
    fault_point("learn.trained")
    return trainer


def _warn_if_inert(
    method: Method, store: ReplayMemory, replay: TaskSamples, scheduled: bool, kept: list[Any], context: Context
) -> None:
    if method.generates and not kept:
        return
    if method.replays and store.generation and not replay:
        context.warn(f"the memory holds no samples, so {method.name} is plain fine-tuning on this task")
    elif method.replays and replay and not scheduled:
        context.warn(
            f"replay never comes: {len(replay)} samples, but the cadence gives no batch; set replay.every "
            "(or fewer replay.day_steps)"
        )
    if method.keeps and not kept:
        context.warn("nothing of this task is kept (replay.ratio or replay.samples is 0): it will not be protected")

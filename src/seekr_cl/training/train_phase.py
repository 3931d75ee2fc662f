"""The phase that trains: schedule, Trainer, and the warnings about replay that will not come."""

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from seekr_cl.config.rates import task_rate
from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import reshard
from seekr_cl.memory import TaskSamples
from seekr_cl.models.packing import packed
from seekr_cl.replay.batches import ScheduledBatches
from seekr_cl.replay.forgetting_curve import Reviews, UpdateClock
from seekr_cl.replay.schedule import MicroBatch, build_schedule, review_rounds
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.stop_requests import raise_if_stop_requested
from seekr_cl.training.learning import Learning
from seekr_cl.training.optimizer_carryover import OptimizerCarryover
from seekr_cl.training.progress import drop_printers
from seekr_cl.training.retention import RetentionProbe
from seekr_cl.training.sample_selection import check_budget, replay_weights
from seekr_cl.training.task_weights import RequireUse
from seekr_cl.training.told import name_for_reports, say_settings, tracked
from seekr_cl.training.trainer import SeekrTrainer


def train(state: Learning) -> None:
    """Trains on the new examples and what the method replays; sets ``state.trainer``."""
    config, method, progress, context = state.config, state.method, state.progress, state.context
    old_tasks = [*state.store.tasks, *progress.new_tasks] if method.keeps else []
    check_budget(config, state.store, progress.kept, context.warn)
    replayed = method.replay_source(old_tasks)
    replay = TaskSamples(replayed if method.replays else [])
    schedule, reviews = _schedule(state, replay)
    _warn_without_effect(state, replay, _replay_comes(state, schedule, reviews))
    if not progress.phase_done("prepared"):
        method.before_task(progress.kept)
        progress.save("prepared")
    cache = getattr(context.model.config, "use_cache", None)
    state.trainer = _trainer(state, schedule, replay, reviews if len(replay) else None)
    say_settings(state, state.trainer.args, state.trainer.rate_source)
    watch = _watch(state, replay)
    rows = [one.input_ids for one in context.examples]
    with packed(context.model, rows) if config.packing else nullcontext():
        state.trainer.train()
        if watch is not None:
            watch.check()
    # The Trainer switches the cache off in the config and would have it written so, slowing whoever generates.
    context.model.config.use_cache = cache
    raise_if_stop_requested()
    if state.trainer.averaging is not None:
        state.trainer.averaging.finish()
    fault_point("learn.trained")


def _schedule(state: Learning, replay: TaskSamples) -> tuple[list[MicroBatch], Reviews | None]:
    """The micro-batches known before training, and the clock of replay that is timed during training."""
    config, settings = state.config, state.config.replay
    official = config.order == "official"
    encoded = state.learned
    order: dict[str, Any] = {
        "num_replay": len(replay),
        "replay_batch_size": (settings.batch_size or config.per_device_train_batch_size) * collectives.world_size(),
        "seed": 0 if official else state.context.seed,
        "reshuffle": not official,
        "replay_weights": replay_weights(config, replay, encoded[0], state.context),
        "replay_lengths": replay.lengths() if config.group_by_length else None,
    }
    schedule = build_schedule(
        epochs_of=[
            float(task.epochs or config.num_train_epochs) for task, part in zip(state.tasks, encoded) for _ in part
        ],
        batch_size=config.per_device_train_batch_size * collectives.world_size(),
        cadence=settings,
        joint=settings.step == "joint",
        lengths=[len(one.input_ids) for part in encoded for one in part] if config.group_by_length else None,
        accumulation=config.gradient_accumulation_steps,
        **order,
    )
    if settings.clock != "updates":
        return schedule, None
    return schedule, Reviews(UpdateClock(settings.day_steps), review_rounds(**order))


def _watch(state: Learning, replay: TaskSamples) -> RetentionProbe | None:
    """Probes during training, where they are asked for and there is an old task; called last of all callbacks."""
    config = state.config
    old = [one for one in state.probes if one.kind != "new"]
    if config.retention.probe_every is None or not old:
        return None
    size = (config.replay.batch_size or config.per_device_train_batch_size) * collectives.world_size()
    watch = RetentionProbe(state.trainer, config.retention, old, replay, size, state.context.seed)
    state.trainer.add_callback(watch)
    return watch


def _replay_comes(state: Learning, schedule: list[MicroBatch], reviews: Reviews | None) -> bool:
    if reviews is None:
        return any(micro.replay for micro in schedule)
    steps = math.ceil(len(schedule) / state.config.gradient_accumulation_steps)
    return steps >= state.config.replay.day_steps


def _trainer(state: Learning, schedule: list[MicroBatch], replay: TaskSamples, reviews: Reviews | None) -> SeekrTrainer:
    config, context, progress = state.config, state.context, state.progress
    args = copy.copy(config)
    args.num_train_epochs = 1
    args.learning_rate, rate_source = task_rate(config, context.model, later=context.previous_state is not None)
    args.seed = context.seed % (1 << 32)
    name_for_reports(args, state)
    reshard(context.model)
    share = (collectives.rank(), collectives.world_size())
    trainer = SeekrTrainer(
        context.model,
        args,
        ScheduledBatches(schedule, list(context.examples), replay, state.method, context.layout, share),
        state.method,
        OptimizerCarryover.load(Path(state.source.name)) if config.carry_optimizer else None,
        progress.save_training,
        progress.begun if progress.phase_done("training") else None,
        reviews,
        callbacks=[tracked(state, schedule, replay), *_added(state, schedule), *state.callbacks],
    )
    trainer.rate_source = rate_source
    if config.average is not None:
        trainer.average(config.average)
    if config.replay.over_tasks == "sum":
        trainer.replay_factor = max(1, sum(bool(len(task.samples)) for task in replay.tasks))
    drop_printers(trainer)
    return trainer


def _added(state: Learning, schedule: list[MicroBatch]) -> list[TrainerCallback]:
    """What settings that are off by default do beside the steps."""
    config, loss = state.config, state.context.task_loss
    if loss is None:
        return []
    return [RequireUse(loss, config.method.name, schedule, config.gradient_accumulation_steps)]


def _warn_without_effect(state: Learning, replay: TaskSamples, scheduled: bool) -> None:
    method, kept, warn = state.method, state.progress.kept, state.context.warn
    if method.generates and not kept:
        return
    if method.replays and state.store.generation and not replay:
        warn(f"the memory holds no samples, so {method.name} is plain fine-tuning on this task")
    elif method.replays and replay and not scheduled:
        warn(
            f"replay never comes: {len(replay)} samples, but the cadence gives no batch; set replay.every "
            "(or fewer replay.day_steps)"
        )
    if method.keeps and not kept:
        warn("nothing of this task is kept (replay.ratio or replay.samples is 0): it will not be protected")

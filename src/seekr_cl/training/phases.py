"""The phases of learning a task, in the order in which ``learn`` calls them; ``train_phase`` has the longest."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from seekr_cl.config.chat import set_template
from seekr_cl.config.rates import NoEffectWarning, record
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.config.tried import try_settings
from seekr_cl.distributed import collectives
from seekr_cl.distributed.dtensor import is_sharded, reshard, whole
from seekr_cl.distributed.engines import keeps_shards, plain
from seekr_cl.errors import OutputError
from seekr_cl.evaluation.evaluation_config import EvaluationConfig
from seekr_cl.memory import MemoryTask, MethodState, ReplaySample, accepted_hashes, model_hash
from seekr_cl.methods import Context, Layout
from seekr_cl.methods.answers import AnswerHead
from seekr_cl.models.card import write_card
from seekr_cl.models.loading import pad_id, save_model, written_state
from seekr_cl.models.merging import dtype_of, merged_from, note_origin
from seekr_cl.models.peft_adapters import is_prompt_learning
from seekr_cl.models.trained_part import freeze_others
from seekr_cl.system.fault_points import fault_point
from seekr_cl.system.files import write_json
from seekr_cl.system.removal import remove_made
from seekr_cl.training import fsdp_loading as once
from seekr_cl.training.adapting import adapted, load_configured
from seekr_cl.training.context_check import check_memory, check_task
from seekr_cl.training.fitting import fitting, make_encoder
from seekr_cl.training.learning import LOG, Learning, LearnResult
from seekr_cl.training.model_card import learned_card
from seekr_cl.training.new_examples import new_examples
from seekr_cl.training.optimizer_carryover import OptimizerCarryover, check_carry
from seekr_cl.training.places import places_of
from seekr_cl.training.precision import warn_if_updates_vanish
from seekr_cl.training.probing import RETENTION, probe_sets
from seekr_cl.training.retention import measure_all, summary
from seekr_cl.training.run_identity import check_same_learning, describe_method, learning_identity
from seekr_cl.training.sample_selection import (
    choose_samples,
    chooses_after_training,
    general_samples,
    previous_state,
    within_budget,
)
from seekr_cl.training.steps_made import steps_made
from seekr_cl.training.task_progress import Ready, TaskProgress, is_uncommitted, make_room, result_state, tidy
from seekr_cl.training.task_weights import weigh
from seekr_cl.training.trainer_state import take_weights

GENERAL = "general"
_SEED_STEP = 1_000_003
"""Distance between two tasks' seeds: far more than any epoch count added to a seed."""


def load(state: Learning) -> None:
    """Loads the model, checks that memory and checkpoint belong to it, and puts it on its device."""
    config = state.config
    optimizer_keys = try_settings(config)
    state.is_sharded_early = not state.source.loaded and _is_sharded_early(config)
    empty = state.is_sharded_early and not collectives.is_main()
    network, state.tokenizer = load_configured(state.source, config, empty)
    set_template(state.tokenizer, config.chat_template)
    model_sha = (
        collectives.on_main_broadcast(partial(model_hash, network)) if state.is_sharded_early else model_hash(network)
    )
    state.tokenizer_sha256, former_sha = accepted_hashes(state.tokenizer)
    state.identity = learning_identity(state.tasks, state.store, config, model_sha, state.tokenizer_sha256)
    if state.begun is not None:
        if state.begun.state["identity"].get("tokenizer") == former_sha:
            state.identity["tokenizer"] = former_sha
        check_same_learning(state.begun.state["identity"], state.identity, str(state.saves.place))
    state.weights_dtype = dtype_of(network)
    state.store.check_belongs(
        model_sha,
        state.tokenizer_sha256,
        former_sha256=former_sha,
        merged_from=merged_from(state.source.name),
        dtype=state.weights_dtype,
    )
    check_memory(state.store, network)
    state.network = adapted(network, config, state.source.name)
    if config.train is not None:
        state.frozen = freeze_others(state.network, config.train)
    if config.carry_optimizer:
        check_carry(Path(state.source.name), state.network, optimizer_keys)
    warn_if_updates_vanish(state.network, config)
    if state.is_sharded_early:
        once.shard(state.network, config)
    else:
        state.network.to(config.device)


def clear_leftovers(state: Learning) -> None:
    """Removes what killed processes left in the memory, now that it is known to be the model's, and in the output."""
    collectives.on_main(lambda: tidy(state.store.path))
    if state.resume:
        collectives.on_main(lambda: make_room(state.output))


def prepare(state: Learning) -> None:
    """Encodes the examples, and sets what the method will work with."""
    config, network, store = state.config, state.network, state.store
    number = sum(not task.info.get(GENERAL) for task in store.tasks) + 1
    state.context = Context(
        model=network.eval(),
        layout=Layout(pad_id(state.tokenizer), _padding_side(network, config), config.pad_multiple or 1),
        importance=store.importance,
        seed=config.seed + number * _SEED_STEP,
        warn=lambda message: warnings.warn(message, NoEffectWarning, stacklevel=2),
        signal_dtype=config.signal_dtype or "int8",
        tokenizer=state.tokenizer,
        task=state.name,
        # Where training keeps no activations, a pass outside of it does.
        batch_size=1 if config.gradient_checkpointing else config.per_device_train_batch_size,
    )
    state.encoder = make_encoder(config, network, state.tokenizer)
    state.trained = [fitting(task, state.encoder, config) for task in state.tasks]
    for task, (examples, encoded) in zip(state.tasks, state.trained):
        check_task(network, config, task, examples, encoded)
    state.context.examples = [item for _, encoded in state.trained for item in encoded]
    state.context.previous_state = previous_state(config, store, state.context.warn)


def probe(state: Learning) -> None:
    """Asks the model what it knows of old tasks, and of the new one, before anything is attached to it."""
    state.probes = probe_sets(state.store, state.tasks, state.encoder, state.probed) if state.probed else []
    saved = [] if state.begun is None else state.begun.state.get("retention", [])
    # None where former versions began it, or with another number of samples.
    known = [found for found, one in zip(saved, state.probes) if len(found["exact"]) == len(one.probes)]
    if not len(saved) == len(known) == len(state.probes):
        known = _asked(state, state.context.model)
    for one, found in zip(state.probes, known, strict=True):
        one.before = found


@contextmanager
def attached_method(state: Learning) -> Iterator[None]:
    """The method is attached to the model inside, and what a checkpoint has of it is loaded."""
    state.method = state.config.method.kind(state.config.method.settings, state.context)
    try:
        places = places_of(state.store.path, state.output, state.saves.place)
        state.progress = TaskProgress(state.saves, state.identity, places, state.method, state.begun)
        state.progress.retention = [one.before for one in state.probes]
        yield
    finally:
        state.method.close()
        AnswerHead.take_off(state.context.model)


def rewrite(state: Learning) -> None:
    """Lets the method put other examples in place of the task's, and weighs them if ``task_loss`` says so."""
    state.learned = [encoded for _, encoded in state.trained]
    if not state.progress.phase_done("scored"):
        state.learned = new_examples(state.method, state.tasks, state.learned, state.encoder.max_length)
        state.context.examples = [item for part in state.learned for item in part]
        state.context.task_loss = weigh(state.config, state.context)


def score_general(state: Learning) -> None:
    """Puts samples of general data, with the base model's signals, into a new memory."""
    progress = state.progress
    if progress.phase_done("general"):
        return
    samples = general_samples(state.config, state.store, state.encoder, state.context, GENERAL)
    if samples:
        state.method.before_task(samples)
        scored = state.method.after_task(GENERAL, samples).task
        progress.new_tasks.append(replace(scored, info={GENERAL: True}))
        progress.save("general")


def choose(state: Learning) -> None:
    """Chooses the samples to keep; where the trained model will choose, as many stand in for them until then."""
    if not state.progress.phase_done("prepared"):
        until_then = "random" if chooses_after_training(state.config) else None
        state.progress.kept = _choose(state, until_then) if state.method.keeps else []


def score(state: Learning) -> None:
    """Scores the kept samples with the trained model, and saves all that the memory and the next task will need."""
    config, method, trainer, progress = state.config, state.method, state.trainer, state.progress
    model = state.context.model
    model.eval()
    if method.keeps and chooses_after_training(config):
        progress.kept = _choose(state)
    result = method.after_task(state.name, progress.kept)
    reshard(state.network)
    progress.new_tasks.append(replace(result.task, info=_facts(state)))
    carry = _carry(state)
    left, left_tensors = result_state(result)
    content = left | {
        "log": trainer.state.log_history,
        "steps": trainer.state.global_step,
        "carries": carry is not None,
    }
    parts = left_tensors | {
        "weights": take_weights(model),
        "carry": carry.tensors if carry is not None else {},
    }
    progress.save("scored", content, parts, keep_shards=keeps_shards(trainer))


def write(state: Learning) -> LearnResult:
    """Writes the model, and with it the next generation of the memory."""
    ready = state.progress.ready(state.context.model)
    state.context.model.zero_grad(set_to_none=True)
    network = state.method.finished_model()
    model_sha = model_hash(network, whole)
    sharded = any(map(is_sharded, network.parameters()))
    tensors = plain(written_state(network)) if sharded else None
    found = summary(state.probes, _asked(state, network), ready.log) if state.probes else {}
    keep, new_tasks = within_budget(state.config, state.store, state.progress.new_tasks, state.context)

    training: Any = new_tasks[-1].info.get("training", {})
    learned = [*state.store.tasks, *new_tasks]
    counts = [len((keep or {}).get(number, task.samples)) for number, task in enumerate(learned)]

    def add_files(folder: Path) -> None:
        write_json(folder / LOG, ready.log)
        if found:
            write_json(folder / RETENTION, found)
        write_card(folder, learned_card(state, network, learned, counts, training))
        if ready.carry is not None:
            ready.carry.save(folder)
        note_origin(folder, network, model_sha, state.config.quantization)

    def write_both() -> None:
        _check_committed(state, model_sha)
        save_model(state.output, network, state.tokenizer, add_files, tensors, provisional=True)
        fault_point("learn.model_saved")
        if state.committed is None:
            _commit(state, ready, keep, new_tasks, model_sha)

    collectives.on_main(write_both)
    if not collectives.is_main():
        state.store.reload()
    model: PreTrainedModel | None = network
    if state.is_sharded_early:
        model = None
    elif sharded:
        model, _ = load_configured(state.output, state.config)
    return LearnResult(
        model, state.tokenizer, state.progress.seconds, ready.steps, ready.log, state.encoder.cut_count, training, found
    )


def _is_sharded_early(config: SeekrConfig) -> bool:
    """Whether process 0 alone loads the weights, as asked; warns where something hinders that."""
    if not once.is_asked():
        return False
    hindrance = once.hindrance(config)
    if hindrance:
        warnings.warn(
            f"fsdp_cpu_ram_efficient_loading: no effect with {hindrance}, every process loads the whole model",
            NoEffectWarning,
            stacklevel=2,
        )
    return not hindrance


def _padding_side(network: Any, config: SeekrConfig) -> str:
    """PEFT counts padding on the left as distance between its prompt and the text, so a prompt has none there."""
    return "right" if is_prompt_learning(network) else config.padding_side or "right"


def _asked(state: Learning, model: Any) -> list[dict[str, Any]]:
    """What a model knows of all probes, in the precision of training."""
    if not state.probes:
        return []
    during = state.tracker.state.phase
    state.tracker.probing(state.name, sum(len(one.probes) for one in state.probes))
    found = measure_all(model, state.probes, EvaluationConfig().precision(state.config), state.tracker.progress)
    state.tracker.phase(during, state.name)
    return found


def _choose(state: Learning, meanwhile: str | None = None) -> list[ReplaySample]:
    return choose_samples(state.config, *state.trained[0], state.encoder, state.context, meanwhile)


def _facts(state: Learning) -> dict[str, object]:
    """What the memory records about the task beside its samples."""
    config, first, trainer = state.config, state.tasks[0], state.trainer
    facts: dict[str, object] = {
        "examples": sum(len(task.train) for task in state.tasks),
        "fingerprint": first.fingerprint(),
        "metric": first.metric,
    }
    if config.method.kind.keeps:
        facts["choice"] = config.replay.choice
    return facts | {"training": record(config, trainer.args, trainer.rate_source, *steps_made(trainer))}


def _carry(state: Learning) -> OptimizerCarryover | None:
    config = state.config
    if not config.carry_optimizer:
        return None
    leak = getattr(config.method.settings, "gradient_leak", False)
    steps = config.gradient_accumulation_steps
    return OptimizerCarryover.take(state.context.model, state.trainer.optimizer, gradients=leak, steps=steps)


def _check_committed(state: Learning, model_sha: str) -> None:
    committed = state.committed
    if committed is not None and committed.model_sha256 != model_sha:
        raise OutputError(
            f"{committed.path}: generation {committed.generation} belongs to another model than "
            f"{state.saves.place} gives"
        )


def _commit(state: Learning, ready: Ready, keep: Any, new_tasks: list[MemoryTask], model_sha: str) -> None:
    """Adds the generation of the memory that belongs to the model just written."""
    store, config = state.store, state.config
    former = store.current
    try:
        store.commit(
            new_tasks,
            keep=keep,
            importance=state.context.importance if ready.importance is None else ready.importance,
            model_sha256=model_sha,
            tokenizer_sha256=state.tokenizer_sha256,
            method=describe_method(config),
            model_folder=state.output,
            method_state=ready.next_state and MethodState(config.method.name, *ready.next_state),
            dtype=state.weights_dtype,
        )
    except BaseException:
        # A model without its generation of the memory would only stand in the way of the next try. One whose
        # generation is there, or may be, stays: with its checkpoint a resumed command finishes either way.
        if is_uncommitted(store.path, former):
            remove_made(state.output)
        raise
    fault_point("learn.committed")

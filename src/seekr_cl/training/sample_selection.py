"""What is kept of a task, how much of each old task comes back, and what goes when the memory is full."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from seekr_cl.config.general import SAMPLES, SelfWritten
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.memory import MemoryTask, ReplayMemory, ReplaySample
from seekr_cl.memory.budget import shrink, task_bytes
from seekr_cl.memory.method_state import teacher_bytes
from seekr_cl.methods import Context, Method
from seekr_cl.methods.base import State, task_generator
from seekr_cl.replay.selection import AFTER_TRAINING, CHOICES, UNRANKED, Candidates, information, similarity_weights
from seekr_cl.replay.selection.candidates import answer_loss, mean_hidden
from seekr_cl.tasks import Encoded, Encoder, Example, Task
from seekr_cl.training.progress import console, counting
from seekr_cl.training.self_written import write_general

COMPARED = 256
"""New examples that stand for their task when it is compared with the old ones."""


def as_sample(example: Example, encoded: Encoded, encoder: Encoder) -> ReplaySample:
    """An encoded example as the memory keeps it."""
    prompt, completion = encoder.render(example)
    ids_L = torch.tensor(encoded.input_ids)
    return ReplaySample(prompt, completion, ids_L, encoded.completion_start, learnt=encoded.learnt)


def general_samples(
    config: SeekrConfig, store: ReplayMemory, encoder: Encoder, context: Context, name: str
) -> list[ReplaySample]:
    """Task 0: general data for a memory that is new; later generations have it already."""
    if config.general is None or store.generation:
        return []
    if isinstance(config.general, SelfWritten):
        samples, said = write_general(config.general, context, encoder, config.general_samples or SAMPLES)
        if collectives.is_main() and config.progress != "none":
            console().print(f"general: self: {said}", soft_wrap=True, markup=False)
        return samples
    examples = Task.load(config.general, name=name).train
    count = config.general_samples or max(8, config.replay.count(len(examples)))
    order = torch.randperm(len(examples), generator=task_generator(config.seed))[:count].sort().values
    return [as_sample(examples[i], encoder.encode(examples[i]), encoder) for i in order.tolist()]


def chooses_after_training(config: SeekrConfig) -> bool:
    """Whether what is kept is chosen by the model that has learned the task: what it looks at before cannot be."""
    looks_before = config.method.kind.before_task is not Method.before_task
    return config.replay.choice in AFTER_TRAINING and not looks_before


def choose_samples(
    config: SeekrConfig,
    examples: list[Example],
    encoded: list[Encoded],
    encoder: Encoder,
    context: Context,
    choice: str | None = None,
) -> list[ReplaySample]:
    """The examples that ``replay.choice`` keeps, best first, by the model as it is now.

    Args:
        config: all settings.
        examples: the task's.
        encoded: their tokens.
        encoder: that made them.
        context: the model and the task's seed.
        choice: another one than the config's.
    """
    choice = choice or config.replay.choice

    def say(sentence: str) -> None:
        if collectives.is_main() and config.progress != "none":
            console().print(f"replay.choice: {sentence}", soft_wrap=True, markup=False)

    candidates = Candidates(
        count=config.replay.count(len(examples)),
        completions=[encoder.render(example)[1] for example in examples],
        encoded=encoded,
        model=context.model,
        seed=context.seed,
        counting=lambda label, total: counting(f"{choice}: {label}", total, config.progress),
        say=say,
    )
    if not candidates.count:
        return []
    return [as_sample(examples[index], encoded[index], encoder) for index in CHOICES[choice](candidates)]


def previous_state(config: SeekrConfig, store: ReplayMemory, warn: Callable[[str], None]) -> State | None:
    """What the method left for this task after the last one; the state of another method is of no use to it."""
    state, name = store.method_state, config.method.name
    if state is None:
        return None
    if state.method != name:
        warn(f"the memory carries a state of {state.method}, which {name} does not use; it ends with this task")
        return None
    return state.tensors, state.content


def replay_weights(
    config: SeekrConfig, replay: Sequence[tuple[MemoryTask, ReplaySample]], encoded: list[Encoded], context: Context
) -> list[float] | None:
    """How often each replay sample comes, relative to the others; ``None`` where all weigh the same.

    A task's share under ``task_weights`` is split among its samples by ``sample_weights``.
    """
    settings = config.replay
    names = [task.name for task, _ in replay]
    equal = settings.task_weights == settings.sample_weights == "equal"
    if not names or (equal and (settings.over_tasks == "mean" or len(set(names)) == 1)):
        return None
    shares = _task_shares(config, replay, encoded, context)
    weights = _sample_weights(config, replay, context)
    totals = dict.fromkeys(names, 0.0)
    for name, weight in zip(names, weights):
        totals[name] += weight
    counts = Counter(names)
    # Where no sample of a task weighs anything, its share is split evenly.
    return [
        shares[name] * (weight / totals[name] if totals[name] > 0 else 1 / counts[name])
        for name, weight in zip(names, weights)
    ]


def _task_shares(
    config: SeekrConfig, replay: Sequence[tuple[MemoryTask, ReplaySample]], encoded: list[Encoded], context: Context
) -> dict[str, float]:
    """Each old task's share of what is replayed.

    Features are means over the prompts' tokens alone, InsCL's instructions, from the model before the task.
    """
    counts = Counter(task.name for task, _ in replay)
    if config.replay.task_weights == "equal" and config.replay.over_tasks == "sum":
        return dict.fromkeys(counts, 1.0)
    if config.replay.task_weights == "equal" or len(counts) == 1:
        return {name: float(count) for name, count in counts.items()}
    order = torch.randperm(len(encoded), generator=task_generator(context.seed))[:COMPARED].tolist()
    new = [encoded[index].input_ids[: max(1, encoded[index].completion_start)] for index in order]
    old = [[s.ids_L[: max(1, s.completion_start)].tolist() for t, s in replay if t.name == name] for name in counts]
    with counting("task similarity", len(new) + len(replay), config.progress) as advance:
        shares = similarity_weights(
            [mean_hidden(context.model, ids, advance) for ids in old], mean_hidden(context.model, new, advance)
        )
    return dict(zip(counts, shares))


def _sample_weights(
    config: SeekrConfig, replay: Sequence[tuple[MemoryTask, ReplaySample]], context: Context
) -> list[float]:
    """Each sample's weight within its task.

    Surprise as in Hazard et al., "SuRe: Surprise-Driven Prioritised Replay for Continual LLM Learning", 2025, arXiv
    2511.22367: the mean negative log-likelihood of the completion's tokens. The paper keeps the most surprising
    examples, which ``choice: loss`` does; here what is kept comes back in proportion to it.
    """
    if config.replay.sample_weights == "information":
        return information([sample.prompt for _, sample in replay])
    if config.replay.sample_weights == "surprise":
        encoded = [sample.encoded for _, sample in replay]
        with counting("surprise", len(encoded), config.progress) as advance:
            return answer_loss(context.model, encoded, advance).tolist()
    return [1.0] * len(replay)


def check_budget(
    config: SeekrConfig, store: ReplayMemory, kept: Sequence[ReplaySample], warn: Callable[[str], None]
) -> None:
    """Says before training what would otherwise be found at its end: that ``memory.max_bytes`` is too small.

    Old samples are counted as they are. The new task's signals do not exist yet, so its sample is counted without
    them for the error, and as large as the smallest old one for the warning.

    Raises:
        ConfigError: if one sample of each task cannot fit, whatever the new signals take.
    """
    limit = config.memory.limit()
    if limit is None:
        return
    old = [task_bytes(task.samples) for task in store.tasks]
    smallest = [header + min(sizes) for header, sizes in old if sizes]
    header, bare = task_bytes(kept)
    least = sum(smallest) + (header + min(bare) if bare else 0)
    tasks = len(smallest) + bool(bare)
    if least > limit:
        raise ConfigError(
            f"memory.max_bytes: one sample of each of {tasks} tasks takes at least {least} bytes, more than {limit}; "
            "allow more, or store less of each (method.head_budget, signal_dtype)"
        )
    guess = sum(smallest) + min(smallest, default=0)
    if bare and guess > limit:
        warn(
            f"memory.max_bytes: {limit} is about too small for one sample of each of {tasks} tasks ({guess} bytes if "
            "the new one is like the old ones); what does not fit is dropped at the end of this task"
        )


def within_budget(
    config: SeekrConfig, store: ReplayMemory, new_tasks: list[MemoryTask], context: Context
) -> tuple[dict[int, list[int]] | None, list[MemoryTask]]:
    """What ``memory.max_bytes`` leaves of old and new tasks.

    Which samples of a task go first: those ranked lowest by its ``replay.choice``; of samples that were drawn at
    random, which stand in the data's order, by a draw from the seed.

    Returns:
        positions of the samples to keep of each old task that has to give some up, for ``store.commit``
        (``None``: nothing goes), and the new tasks with what may stay of them.
    """
    limit = config.memory.limit()
    if limit is None:
        return None, new_tasks
    tasks = [*store.tasks, *new_tasks]
    taken = [task_bytes(task.samples) for task in tasks]
    fixed = sum(header for header, _ in taken) + sum(teacher_bytes(task.teacher) for task in tasks)
    sizes, room = [each for _, each in taken], max(0, limit - fixed)
    order = [
        None
        if task.info.get("choice", UNRANKED[0]) not in UNRANKED
        else torch.randperm(len(task.samples), generator=task_generator(config.seed + number)).tolist()
        for number, task in enumerate(tasks)
    ]
    try:
        kept = shrink(sizes, room, order)
    except ConfigError as error:
        # Hours of training are not thrown away for a budget that turned out too small at their end.
        context.warn(f"{error}; one sample of each task was kept")
        kept = {number: [rank[0] if rank else 0] for number, rank in enumerate(order) if tasks[number].samples}
    old = {n: kept[n] for n, task in enumerate(store.tasks) if len(kept.get(n, ())) < len(task.samples)}
    fresh = [
        replace(task, samples=[task.samples[position] for position in kept.get(len(store.tasks) + n, ())])
        for n, task in enumerate(new_tasks)
    ]
    return old or None, fresh

"""What a run or a learning would check, and the first things that it would do, without training or writing anything."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError, SeekrError
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.open_files import require_open_files
from seekr_cl.methods import Method
from seekr_cl.models.loading import refuse_unwritable
from seekr_cl.models.source import ModelSource
from seekr_cl.os_errors import describe
from seekr_cl.runs.example_check import Lengths, check_examples, check_tasks, stages_of
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.tasks import Encoded, Task, collate
from seekr_cl.training import phases
from seekr_cl.training.adapting import require_base
from seekr_cl.training.checkpoint import Checkpoints
from seekr_cl.training.learn import require_new
from seekr_cl.training.learning import Learning
from seekr_cl.training.places import refuse_overlap
from seekr_cl.training.sample_selection import as_sample


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: ``ok``, ``warning``, ``failed``, or ``skipped`` where something before it failed.
        detail: what was found, or what is wrong and how to mend it.
    """

    name: str
    state: str
    detail: str


@dataclass(slots=True)
class Validation:
    """All checks, in order.

    Attributes:
        checks: what was looked at.
        parameters: weights of the model, if it could be loaded.
        trained: those of them, or of its adapter, that are trained.
        lengths: of the tasks' examples.
        epochs: of each task, its own or the settings'.
    """

    checks: list[Check] = field(default_factory=list)
    parameters: int = 0
    trained: int = 0
    lengths: dict[str, Lengths] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a run would be refused."""
        return any(check.state == "failed" for check in self.checks)

    def can(self, name: str, after: Sequence[str]) -> bool:
        """Whether a check can be made, which needs those ``after`` which it comes; notes it if it cannot."""
        lacking = [one.name for one in self.checks if one.name in after and one.state in ("failed", "skipped")]
        if lacking:
            self.checks.append(Check(name, "skipped", f"needs: {', '.join(lacking)}"))
        return not lacking

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[[str], None]]:
        """Runs a block as one check; an error for bad input is what it found.

        Yields:
            Takes what was found when all is well.
        """
        found: list[str] = []
        try:
            yield found.append
        except SeekrError as error:
            self.checks.append(Check(name, "failed", str(error)))
        except torch.OutOfMemoryError:
            advice = "lower per_device_train_batch_size or max_length, or set gradient_checkpointing=true or peft=lora"
            self.checks.append(Check(name, "failed", f"the device has too little memory; {advice}"))
        except OSError as error:
            self.checks.append(Check(name, "failed", describe(error)))
        else:
            self.checks.append(Check(name, "ok", "; ".join(found)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What would be learned.

    Attributes:
        model: folder or Hub name.
        tasks: each with what reads it: only one that is called reads its files.
        probes: the same for tests beside the tasks'.
        config: all settings.
        output: the run's or the new model's folder; ``None`` if it is not said yet.
        memory: the memory's folder; ``None`` for a new one.
        is_run: whether it is a stream with an evaluation after each task.
    """

    model: str
    tasks: Sequence[tuple[str, Callable[[], Task]]]
    config: SeekrConfig
    probes: Sequence[tuple[str, Callable[[], Task]]] = ()
    output: Path | None = None
    memory: Path | None = None
    is_run: bool = False


def validate(wanted: Wanted) -> Validation:
    """Checks everything that can be known before training.

    Data, settings, folders, model, tokenizer, template and lengths are checked by the very functions of a run. Then the
    method is attached to the model, scores one sample if it keeps any, and makes the loss and gradients of one batch,
    which are thrown away.
    """
    made = Validation()
    tasks, probes = _read(made, wanted.tasks, "task"), _read(made, wanted.probes, "probe")
    made.epochs = {task.name: float(task.epochs or wanted.config.num_train_epochs) for task in tasks}
    data = [check.name for check in made.checks]
    if wanted.is_run and made.can("names and metrics", data):
        with made.check("names and metrics"):
            check_tasks(tasks, probes)
    with made.check("folders") as say:
        say(_check_folders(wanted))
    store: ReplayMemory | None = None
    with made.check("memory") as say:
        store = _open_memory(wanted)
        say(f"generation {store.generation}, {len(store.samples)} samples" if store.generation else "a new one")
    state: Learning | None = None
    if store is not None and made.can("model", ["memory"]):
        with made.check("model") as say:
            state = _load(wanted, tasks, store)
            weights = [(weight.numel(), weight.requires_grad) for weight in state.network.parameters()]
            made.parameters = sum(count for count, _ in weights)
            made.trained = sum(count for count, is_trained in weights if is_trained)
            own = wanted.config.method.kind.adapters
            trained = "the method's own adapters" if own else f"{made.trained / 1e6:.1f}M"
            say(f"{made.parameters / 1e6:.1f}M weights, trained: {trained}")
    if state is not None and made.can("examples", ["model", *data, "names and metrics"]):
        with made.check("examples") as say:
            made.lengths = check_examples(state.network, state.tokenizer, wanted.config, tasks, probes)
            say(f"{sum(one.examples for one in made.lengths.values())} fit")
        _check_method(made, state, wanted.config)
    return made


def _load(wanted: Wanted, tasks: list[Task], store: ReplayMemory) -> Learning:
    source = ModelSource(wanted.model)
    require_base(source, wanted.config)
    stage = stages_of(tasks, wanted.config)[0] if tasks else [Task("none", [])]
    # Nothing is written to places that nobody has named.
    output = wanted.output or Path("model")
    state = Learning(source, stage, store, output, wanted.config, (), Checkpoints(output), None, False)
    phases.load(state)
    return state


def _read(made: Validation, sources: Sequence[tuple[str, Callable[[], Task]]], kind: str) -> list[Task]:
    tasks = []
    for name, read in sources:
        with made.check(f"{kind} {name}") as say:
            task = read()
            say(f"{len(task.train)} examples" + (f", {len(task.test)} tests" if task.test else ""))
            tasks.append(task)
    return tasks


def _check_folders(wanted: Wanted) -> str:
    require_open_files()
    output = wanted.output
    if output is None:
        return "--output is not given"
    if wanted.memory is not None:
        refuse_overlap(wanted.memory, output, output.parent / f"{output.name}.checkpoints")
        refuse_unwritable(wanted.memory)
    require_new(output, Checkpoints(output.parent / f"{output.name}.checkpoints"))
    refuse_mount(output)
    return f"{output} is free"


def _open_memory(wanted: Wanted) -> ReplayMemory:
    if wanted.memory is None:
        return ReplayMemory(Path("memory"))
    return ReplayMemory.open(wanted.memory, create=True, verify=True)


def _check_method(made: Validation, state: Learning, config: SeekrConfig) -> None:
    """Attaches the method, and goes one step of training without the step."""
    method: Method | None = None
    try:
        if made.can("method", ["examples"]):
            with made.check("method") as say:
                phases.prepare(state)
                method = config.method.kind(config.method.settings, state.context)
                tap = getattr(method, "tap", None)
                say(f"attends with {sum(tap.heads.values())} heads in {len(tap.heads)} layers" if tap else method.name)
        if made.can("one step", ["examples", "method"]) and method is not None:
            with made.check("one step") as say:
                method.replay_source(state.store.tasks if method.keeps else [])
                _one_step(method, state, say)
    finally:
        if method is not None:
            method.close()


def _one_step(method: Method, state: Learning, say: Callable[[str], None]) -> None:
    examples, encoded = state.trained[0]
    if method.keeps and not method.generates:
        number = min(range(len(encoded)), key=lambda one: len(encoded[one].input_ids))
        method.before_task([as_sample(examples[number], encoded[number], state.encoder)])
    count = state.config.per_device_train_batch_size if state.context.model.device.type != "cpu" else 1
    numbers = sorted(range(len(encoded)), key=lambda one: -len(encoded[one].input_ids))[:count]
    loss = _loss(method, state, [encoded[one] for one in numbers], numbers)
    if not torch.isfinite(loss):
        raise ConfigError("the loss of the first batch is NaN or infinite; check the model and the data, or dtype")
    say(f"loss {float(loss):.2f} on the longest example")


def _loss(method: Method, state: Learning, encoded: list[Encoded], numbers: list[int]) -> torch.Tensor:
    config, layout = state.config, state.context.layout
    batch = dict(collate(encoded, layout.pad_id, layout.side, layout.multiple))
    device = state.context.model.device
    batch = {key: value.to(device) for key, value in batch.items()} | {"example_B": torch.tensor(numbers)}
    half = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    state.context.model.train()
    try:
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            terms = method.new_task_loss(state.context.model, batch)
        loss = sum((term.weight * term.value for term in terms.values()), torch.zeros((), device=device))
        loss.backward()
        return loss.detach()
    finally:
        state.context.model.zero_grad(set_to_none=True)
        state.context.model.eval()

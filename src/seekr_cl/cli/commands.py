"""What each command does: turn options into calls of the library and print the result."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seekr_cl.cli.choices import begun_learning, begun_run, fitted, show_choices
from seekr_cl.cli.live import live
from seekr_cl.cli.output import out
from seekr_cl.cli.verdict_output import print_verdict
from seekr_cl.config.overrides import apply_overrides, benchmark_overrides, read_settings
from seekr_cl.config.rates import told
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.models.card import write_card
from seekr_cl.models.loading import load_model, require_free, save_model
from seekr_cl.models.merging import note_merged, origin_of
from seekr_cl.models.peft_adapters import merged
from seekr_cl.placement import declare
from seekr_cl.report import score_table
from seekr_cl.report.learning_verdict import of_learning
from seekr_cl.report.verdict import VERDICT, Verdict
from seekr_cl.runs.stream_run import SCORES, run
from seekr_cl.system.files import write_json
from seekr_cl.system.locks import hold
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.system.paths import beside
from seekr_cl.system.reading import read_json
from seekr_cl.system.removal import remove_unfinished
from seekr_cl.system.sizes import size
from seekr_cl.tasks import StreamSpec, Task
from seekr_cl.tasks.stream import task_spec
from seekr_cl.tasks.task import check_limit, check_switch
from seekr_cl.training import SeekrConfig, config_from, learn
from seekr_cl.training.model_card import merged_card

_OPTIONS = {"output": "--output", "resume": "--resume", "name": "--name", "task": "--task", "config": "--config"}
_OF_A_STREAM = {"model": "--model", "tasks": "--task", "benchmark": "", "probes": "", "limit": ""}
declare("the command line", lambda: _OPTIONS, lambda key: f"it is said on the command line: {_OPTIONS[key]}")
declare(
    "a stream",
    lambda: _OF_A_STREAM,
    lambda key: (
        "it belongs to a stream, the file that seekr run takes"
        + (f"; seekr learn takes {_OF_A_STREAM[key]}" if _OF_A_STREAM[key] else "")
    ),
)


def learn_command(given: Any) -> None:
    """``seekr learn``."""
    settings = apply_overrides(read_settings(given.config), given.overrides, given.method)
    columns = settings.pop("columns", None)
    allow_empty = check_switch(settings.pop("allow_empty", None), "allow_empty")
    begun = begun_learning(given.output) if given.resume else None
    config = _fitted(settings, given.config or "settings", given.model, begun)
    task = Task.load(given.task, name=given.name, columns=columns, allow_empty=allow_empty)
    with live(given, collectives.is_main()):
        learnt = learn(given.model, task, given.memory, given.output, config, resume=given.resume)
        memory = ReplayMemory.open(given.memory)
        verdict = of_learning(Path(given.output), learnt.training, memory.num_bytes)
        collectives.on_main(partial(write_json, Path(given.output) / VERDICT, verdict.to_json()))
    if learnt.cut:
        out().print(f"{learnt.cut} prompts truncated on the left to max_length")
    out().print(
        f"learned {task.name} in {learnt.steps} steps{_rate(learnt.training)}, {learnt.seconds:.0f} s; model in "
        f"{given.output}; "
        f"memory in {given.memory}: generation {memory.generation}, {len(memory.samples)} samples, "
        f"{size(memory.num_bytes)}",
        soft_wrap=True,
    )
    print_verdict(verdict)
    given.answer = {
        "task": task.name,
        "steps": learnt.steps,
        "seconds": round(learnt.seconds, 2),
        "model": given.output,
        "memory": given.memory,
        "generation": memory.generation,
        "samples": len(memory.samples),
        "memory_bytes": memory.num_bytes,
        "truncated_prompts": learnt.cut,
        "training": learnt.training,
        "verdict": verdict.to_json(),
    }


def _rate(training: dict[str, Any]) -> str:
    """The learning rate, and where it comes from if not from the user."""
    if "learning_rate" not in training:
        return ""
    return f" at {told(training['learning_rate'], training['from']['learning_rate'])}"


def run_command(given: Any) -> None:
    """``seekr run``."""
    stream = _stream(given, given.stream)
    probe_tasks = [load() for _, load in stream.probes]
    tasks = stream.spec.load_tasks(require_test=True, limit=stream.limit)
    named = stream.benchmark is not None
    begun = begun_run(given.output) if given.resume else None
    config = stream.config(stream.settings) if named else _fitted(stream.settings, given.stream, stream.model, begun)
    with live(given, collectives.is_main()):
        matrix = run(
            stream.model, tasks, given.output, config, probes=probe_tasks, resume=given.resume,
            benchmark=stream.benchmark,
        )  # fmt: skip
    out().print(score_table(matrix))
    print_verdict(Verdict.read(Path(given.output) / VERDICT))
    out().print(f"scores, plot and predictions in {given.output}", soft_wrap=True)
    given.answer = {"output": given.output, **read_json(Path(given.output) / SCORES)}


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream with the command line put in; no data is read yet."""

    spec: StreamSpec
    settings: dict[str, Any]
    model: str
    probes: Sequence[tuple[str, Callable[[], Task]]]
    limit: Any
    benchmark: dict[str, Any] | None

    def config(self, settings: Mapping[str, Any]) -> SeekrConfig:
        return _config(settings, str(self.spec.path))


def _stream(given: Any, file: str) -> _Stream:
    block, overrides = benchmark_overrides(given.overrides)
    spec = StreamSpec.from_yaml(file, block)
    settings = apply_overrides(spec.settings, overrides, given.method)
    benchmark = None if spec.benchmark is None else spec.benchmark.describe(settings, settings.get("limit"))
    model = given.model or settings.get("model")
    settings.pop("model", None)
    probes, limit = settings.pop("probes", None) or [], settings.pop("limit", None)
    if not model:
        raise ConfigError(f"{file}: no model; add 'model: FOLDER' or pass --model")
    if not isinstance(probes, list):
        raise ConfigError(f"{file}: probes must be a list of tasks")
    folder = spec.path.parent
    specs = [task_spec(entry, f"{file}: probe {number}", folder) for number, entry in enumerate(probes, 1)]
    loaders = [(one.name, partial(one.load, require_test=True)) for one in specs]
    return _Stream(spec, settings, _model_source(folder, str(model)), loaders, limit, benchmark)


def init_command(given: Any) -> None:
    """``seekr init``."""
    from seekr_cl.cli import init_command as init

    init.init_command(given)


def doctor_command(given: Any) -> None:
    """``seekr doctor``."""
    from seekr_cl.cli.doctor_command import doctor

    doctor(given, _config(apply_overrides({}, given.overrides, None), "settings"))


def push_command(given: Any) -> None:
    """``seekr push``."""
    from seekr_cl.cli import push_command as push

    push.push_command(given)


def validate_command(given: Any) -> None:
    """``seekr validate``."""
    from seekr_cl.cli.validate_command import asked_for, validated

    file = given.stream_file
    said = {} if file is None else read_settings(file)
    output, memory = (None if one is None else Path(one) for one in (given.output, given.memory))
    if said.keys() & {"tasks", "benchmark"}:
        for option in ("task", "memory", "name"):
            if getattr(given, option) is not None:
                raise ConfigError(f"--{option}: would be ignored, {file} is a stream that lists its tasks; remove it")
        stream = _stream(given, file)
        common = check_limit(stream.limit, f"{file}: limit")
        specs = [replace(spec, limit=common | spec.limit) for spec in stream.spec.tasks]
        tasks = [(spec.name, partial(spec.load, require_test=True)) for spec in specs]
        wanted = {"model": stream.model, "tasks": tasks, "probes": stream.probes, "output": output, "is_run": True}
        validated(asked_for(given, stream.settings, stream.config, **wanted), given.json)
        return
    for option in ("model", "task"):
        if getattr(given, option) is None:
            what = f"{file} lists no tasks, so it is the settings of one learning" if file else "no stream is named"
            raise ConfigError(f"--{option}: missing; {what}, which needs --model and --task")
    settings = apply_overrides(said, given.overrides, given.method)
    columns = settings.pop("columns", None)
    allow_empty = check_switch(settings.pop("allow_empty", None), "allow_empty")
    load = partial(Task.load, given.task, name=given.name, columns=columns, allow_empty=allow_empty)
    name = given.name or Path(given.task).name
    wanted = {"model": given.model, "tasks": [(name, load)], "output": output, "memory": memory}
    validated(asked_for(given, settings, lambda some: _config(some, file or "settings"), **wanted), given.json)


def evaluate_command(given: Any) -> None:
    """``seekr evaluate``."""
    from seekr_cl.cli.evaluate_command import evaluate_command

    evaluate_command(given)


def compare_command(given: Any) -> None:
    """``seekr compare``."""
    from seekr_cl.cli.compare_command import compare_command

    compare_command(given)


def report_command(given: Any) -> None:
    """``seekr report``."""
    from seekr_cl.cli.report_command import report_command

    report_command(given)


def gate_command(given: Any) -> int:
    """``seekr gate``."""
    from seekr_cl.cli.gate_command import gate_command

    return gate_command(given)


def drift_command(given: Any) -> None:
    """``seekr drift``."""
    from seekr_cl.cli.drift_command import drift_command

    drift_command(given)


def export_command(given: Any) -> None:
    """``seekr export``."""
    output = Path(os.path.abspath(given.output))
    require_free(output)
    refuse_mount(output)
    with hold(output, "output"):
        remove_unfinished(output)
        model, tokenizer = load_model(given.model, given.dtype)
        # Asked before the adapter is merged into the weights that it is about.
        origin = origin_of(Path(given.model), model) if hasattr(model, "peft_config") else None
        card = merged_card(Path(given.model), given.model)

        def add_files(folder: Path) -> None:
            note_merged(folder, sha256=origin)
            write_card(folder, card)

        save_model(output, merged(model, given.model), tokenizer, add_files)
    out().print(f"model in {output}", soft_wrap=True)


def demo_command(given: Any) -> None:
    """``seekr demo``."""
    from seekr_cl.demo.demo_run import demo

    given.answer = demo(
        Path(given.output),
        methods=given.methods,
        seed=given.seed,
        quick=given.quick,
        quiet=given.quiet,
        settings=apply_overrides({}, given.overrides, None),
    )


def memory_command(given: Any) -> None:
    """``seekr memory``."""
    from seekr_cl.cli import memory_command as memory

    memory.COMMANDS[given.memory_command](given)


def benchmark_command(given: Any) -> None:
    """``seekr benchmark``."""
    from seekr_cl.cli import benchmark_command as benchmark

    benchmark.COMMANDS[given.benchmark_command](given)


def inspect_command(given: Any) -> None:
    """``seekr inspect``."""
    from seekr_cl.cli.inspect_command import inspect

    settings = apply_overrides(read_settings(given.config), given.overrides, given.method)
    given.columns = settings.pop("columns", None)
    given.allow_empty = check_switch(settings.pop("allow_empty", None), "allow_empty")
    inspect(given, _config({"use_cpu": True} | settings, given.config or "settings"), out())


def methods_command(given: Any) -> None:
    """``seekr methods``."""
    from seekr_cl.cli import methods_command as methods

    methods.methods_command(given)


def plan_command(given: Any) -> None:
    """``seekr plan``."""
    from seekr_cl.cli.plan_command import plan

    block, overrides = benchmark_overrides(given.overrides)
    spec = None if given.stream_file is None else StreamSpec.from_yaml(given.stream_file, block)
    settings = apply_overrides(
        {} if spec is None else spec.settings, overrides if spec else given.overrides, given.method
    )
    for key in ("model", "probes"):
        settings.pop(key, None)
    limit = settings.pop("limit", None)
    plan(given, spec, _config({"use_cpu": True} | settings, given.stream_file or "settings"), limit, out())


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "plan": plan_command,
    "learn": learn_command,
    "run": run_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "compare": compare_command,
    "report": report_command,
    "gate": gate_command,
    "drift": drift_command,
    "demo": demo_command,
    "memory": memory_command,
    "benchmark": benchmark_command,
    "methods": methods_command,
    "inspect": inspect_command,
    "validate": validate_command,
    "init": init_command,
    "doctor": doctor_command,
    "push": push_command,
}


def _fitted(settings: dict[str, Any], source: str, model: str, begun: Mapping[str, Any] | None) -> SeekrConfig:
    """A config with what the machine decides put in, which is said."""
    config, choices = fitted(settings, lambda some: _config(some, source), model, begun)
    show_choices(choices, config)
    return config


def _config(settings: Mapping[str, Any], source: str) -> SeekrConfig:
    # The Trainer wants a folder of its own although nothing is saved through it; another user's would not do.
    return config_from(settings, str(Path(tempfile.gettempdir()) / f"seekr-trainer-{os.getuid()}"), source)


def _model_source(folder: Path, model: str) -> str:
    """A model's folder, resolved like a task's; what is not a folder is a name on the Hub."""
    place = beside(folder, model, "model")
    return str(place) if place.exists() else model

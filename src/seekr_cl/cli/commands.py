"""What each command does: turn options into calls of the library and print the result."""

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out, size
from seekr_cl.cli.verdict_output import print_verdict
from seekr_cl.config.overrides import apply_overrides, benchmark_overrides, read_settings
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.memory import ReplayMemory
from seekr_cl.models.loading import load_model, require_free, save_model
from seekr_cl.models.merging import note_merged, origin_of
from seekr_cl.models.peft_adapters import merged
from seekr_cl.report import score_table
from seekr_cl.report.learning_verdict import of_learning
from seekr_cl.report.verdict import VERDICT, Verdict
from seekr_cl.runs.stream_run import run
from seekr_cl.system import reading
from seekr_cl.system.files import write_json
from seekr_cl.system.locks import hold
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.system.paths import beside
from seekr_cl.system.removal import remove_unfinished
from seekr_cl.tasks import StreamSpec, Task
from seekr_cl.tasks.stream import task_spec
from seekr_cl.tasks.task import check_switch
from seekr_cl.training import SeekrConfig, config_from, learn


def learn_command(given: Any) -> None:
    """``seekr learn``."""
    settings = apply_overrides(read_settings(given.config), given.overrides, given.method)
    columns = settings.pop("columns", None)
    allow_empty = check_switch(settings.pop("allow_empty", None), "allow_empty")
    config = _config(settings, given.config or "settings")
    task = Task.load(given.task, name=given.name, columns=columns, allow_empty=allow_empty)
    learnt = learn(given.model, task, given.memory, given.output, config, resume=given.resume)
    memory = ReplayMemory.open(given.memory)
    verdict = of_learning(Path(given.output), learnt.training, memory.num_bytes)
    collectives.on_main(partial(write_json, Path(given.output) / VERDICT, verdict.to_json()))
    if given.json:
        facts = {"task": task.name, "steps": learnt.steps, "seconds": learnt.seconds, "training": learnt.training}
        facts |= {"prompts_cut": learnt.cut, "generation": memory.generation, "samples": len(memory.samples)}
        facts |= {"memory_bytes": memory.num_bytes, "verdict": verdict.to_json()}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
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


def _rate(training: dict[str, Any]) -> str:
    """The learning rate, and where it comes from if not from the user."""
    if "learning_rate" not in training:
        return ""
    source = training["from"]["learning_rate"]
    told = "" if source == "user" else f" (the default of the {source})"
    return f" at learning rate {training['learning_rate']:g}{told}"


def run_command(given: Any) -> None:
    """``seekr run``."""
    block, overrides = benchmark_overrides(given.overrides)
    spec = StreamSpec.from_yaml(given.stream, block)
    settings = apply_overrides(spec.settings, overrides, given.method)
    benchmark = None if spec.benchmark is None else spec.benchmark.describe(settings, settings.get("limit"))
    model = given.model or settings.get("model")
    settings.pop("model", None)
    probes, limit = settings.pop("probes", None) or [], settings.pop("limit", None)
    if not model:
        raise ConfigError(f"{given.stream}: no model; add 'model: FOLDER' or pass --model")
    if not isinstance(probes, list):
        raise ConfigError(f"{given.stream}: probes must be a list of tasks")
    config = _config(settings, given.stream)
    folder = spec.path.parent
    probe_tasks = [
        task_spec(entry, f"{given.stream}: probe {number}", folder).load(require_test=True)
        for number, entry in enumerate(probes, 1)
    ]
    tasks = spec.load_tasks(require_test=True, limit=limit)
    matrix = run(
        _model_source(folder, str(model)), tasks, given.output, config, probes=probe_tasks, resume=given.resume,
        benchmark=benchmark,
    )  # fmt: skip
    if given.json:
        print(json.dumps(reading.read_json(Path(given.output) / "scores.json"), indent=2, ensure_ascii=False))
        return
    out().print(score_table(matrix))
    print_verdict(Verdict.read(Path(given.output) / VERDICT))
    out().print(f"scores, plot and predictions in {given.output}", soft_wrap=True)


def evaluate_command(given: Any) -> None:
    """``seekr evaluate``."""
    from seekr_cl.cli.evaluate_command import evaluate_command

    evaluate_command(given)


def compare_command(given: Any) -> None:
    """``seekr compare``."""
    from seekr_cl.cli.compare_command import compare_command

    compare_command(given)


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
        save_model(output, merged(model, given.model), tokenizer, partial(note_merged, sha256=origin))
    out().print(f"model in {output}", soft_wrap=True)


def demo_command(given: Any) -> None:
    """``seekr demo``."""
    from seekr_cl.demo.demo_run import demo

    demo(
        Path(given.output),
        methods=given.methods,
        seed=given.seed,
        quick=given.quick,
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
    spec = None if given.plan_stream is None else StreamSpec.from_yaml(given.plan_stream, block)
    settings = apply_overrides(
        {} if spec is None else spec.settings, overrides if spec else given.overrides, given.method
    )
    for key in ("model", "probes"):
        settings.pop(key, None)
    limit = settings.pop("limit", None)
    plan(given, spec, _config({"use_cpu": True} | settings, given.plan_stream or "settings"), limit, out())


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "plan": plan_command,
    "learn": learn_command,
    "run": run_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "compare": compare_command,
    "gate": gate_command,
    "drift": drift_command,
    "demo": demo_command,
    "memory": memory_command,
    "benchmark": benchmark_command,
    "methods": methods_command,
    "inspect": inspect_command,
}


def _config(settings: dict[str, Any], source: str) -> SeekrConfig:
    # The Trainer wants a folder of its own although nothing is saved through it; another user's would not do.
    return config_from(settings, str(Path(tempfile.gettempdir()) / f"seekr-trainer-{os.getuid()}"), source)


def _model_source(folder: Path, model: str) -> str:
    """A model's folder, resolved like a task's; what is not a folder is a name on the Hub."""
    place = beside(folder, model, "model")
    return str(place) if place.exists() else model

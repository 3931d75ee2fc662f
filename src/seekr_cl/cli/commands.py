"""What each command does: turn options into calls of the library and print the result."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from rich.table import Table

from seekr_cl.cli.output import out, size
from seekr_cl.cli.settings import apply_overrides, benchmark_overrides, read_settings
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation import evaluate_task, get_metric, write_predictions
from seekr_cl.memory import ReplayMemory
from seekr_cl.memory.files import write_json
from seekr_cl.methods.writing import context_length
from seekr_cl.report import score_table
from seekr_cl.tasks import Encoder, StreamSpec, Task
from seekr_cl.tasks.stream import beside, task_spec
from seekr_cl.training import SeekrConfig, config_from, learn
from seekr_cl.training.adapters import merged
from seekr_cl.training.learn import DEFAULT_LENGTH, InertWarning
from seekr_cl.training.models import load_model, require_free, save_model
from seekr_cl.training.run import run


def learn_command(given: Any) -> None:
    """``seekr learn``."""
    settings = apply_overrides(read_settings(given.config), given.overrides, given.method)
    config = _config(settings, given.config or "settings")
    if Path(given.memory).resolve() == Path(given.output).resolve():
        raise ConfigError(f"--memory and --output: both are {given.output}; the model needs a folder of its own")
    task = Task.load(given.task, name=given.name)
    learnt = learn(given.model, task, given.memory, given.output, config, resume=given.resume)
    if learnt.cut:
        out().print(f"{learnt.cut} prompts were too long and lost their left (max_length)")
    memory = ReplayMemory.open(given.memory)
    out().print(
        f"learnt {task.name} in {learnt.steps} steps, {learnt.seconds:.0f} s; model in {given.output}; "
        f"memory in {given.memory}: generation {memory.generation}, {len(memory.samples)} samples, "
        f"{size(memory.num_bytes)}",
        soft_wrap=True,
    )


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
    out().print(score_table(matrix))
    out().print(f"scores, plot and predictions in {given.output}", soft_wrap=True)


def evaluate_command(given: Any) -> None:
    """``seekr evaluate``."""
    output = Path(given.output)
    require_free(output)
    tasks = [task for source in given.task for task in _test_tasks(source, given)]
    slugs = [task.slug.casefold() for task in tasks]
    for task, slug in zip(tasks, slugs):
        if slugs.count(slug) > 1:
            raise ConfigError(f"--task: two tasks are called '{task.name}'; rename a file or folder")
        get_metric(task.metric)
    if given.batch_size < 1:
        raise ConfigError(f"--batch-size: {given.batch_size} must be at least 1")
    model, tokenizer = load_model(given.model, given.dtype, quantization=given.quantization)
    encoder = Encoder(tokenizer, _length(given.max_length, context_length(model)))
    for task in tasks:
        # All of them before the first is scored, so that the last one's trouble does not cost the others' hours.
        for example in task.test:
            encoder.encode_prompt(example, reserve=task.max_new_tokens)
    table = Table("task", "metric", "score", "examples")
    scores = {}
    for task in tasks:
        score = evaluate_task(model, tokenizer, task, encoder, given.batch_size)
        write_predictions(output, score)
        scores[task.name] = {"metric": task.metric, "score": score.score, "examples": score.count}
        table.add_row(task.name, task.metric, f"{score.score:.1f}", str(score.count))
    conventions = {
        "engine": "transformers generate, greedy",
        "dtype": given.dtype,
        "quantization": given.quantization,
        "batch_size": given.batch_size,
        "prompts_cut": encoder.cut_count,
    }
    write_json(output / "scores.json", {"model": given.model, "tasks": scores, **conventions})
    out().print(table)
    out().print(f"scores and predictions in {output}", soft_wrap=True)


def export_command(given: Any) -> None:
    """``seekr export``."""
    output = Path(given.output)
    require_free(output)
    model, tokenizer = load_model(given.model, given.dtype)
    save_model(output, merged(model, given.model), tokenizer)
    out().print(f"model in {output}", soft_wrap=True)


def demo_command(given: Any) -> None:
    """``seekr demo``."""
    from seekr_cl.demo.run import demo

    demo(
        Path(given.output),
        methods=given.methods,
        seed=given.seed,
        quick=given.quick,
        settings=apply_overrides({}, given.overrides, None),
    )


def memory_command(given: Any) -> None:
    """``seekr memory``."""
    from seekr_cl.cli import memory

    memory.COMMANDS[given.memory_command](given)


def benchmark_command(given: Any) -> None:
    """``seekr benchmark``."""
    from seekr_cl.cli import benchmark

    benchmark.COMMANDS[given.benchmark_command](given)


def methods_command(given: Any) -> None:
    """``seekr methods``."""
    from seekr_cl.cli import methods

    methods.methods_command(given)


def plan_command(given: Any) -> None:
    """``seekr plan``."""
    from seekr_cl.cli.plan import plan

    block, overrides = benchmark_overrides(given.overrides)
    spec = None if given.plan_stream is None else StreamSpec.from_yaml(given.plan_stream, block)
    settings = apply_overrides(
        {} if spec is None else spec.settings, overrides if spec else given.overrides, given.method
    )
    for key in ("model", "probes"):
        settings.pop(key, None)
    limit = settings.pop("limit", None)
    plan(given, spec, _config({"use_cpu": True} | settings, given.plan_stream or "settings"), limit, out())


COMMANDS = {
    "plan": plan_command,
    "learn": learn_command,
    "run": run_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "demo": demo_command,
    "memory": memory_command,
    "benchmark": benchmark_command,
    "methods": methods_command,
}


def _config(settings: dict[str, Any], source: str) -> SeekrConfig:
    # The Trainer wants a folder of its own although nothing is saved through it.
    return config_from(settings, str(Path(tempfile.gettempdir()) / "seekr-trainer"), source)


def _test_tasks(source: str, given: Any) -> list[Task]:
    if source.endswith((".yaml", ".yml")):
        return StreamSpec.from_yaml(source).load_tasks(require_test=True)
    # A single file is what is to be tested, whatever it is called.
    data: Any = {"train": source, "test": source} if Path(source).is_file() else source
    return [
        Task.load(
            data,
            name=Path(source).stem if Path(source).is_file() else None,
            metric=given.metric or "exact_match",
            max_new_tokens=given.max_new_tokens,
            require_test=True,
        )
    ]


def _length(asked: int | None, context: int | None) -> int:
    """Tokens of prompt and answer together: what was asked for, but no more than the model's context."""
    if asked is None:
        return context or DEFAULT_LENGTH
    if context is not None and asked > context:
        warnings.warn(
            f"--max-length: {asked} is more than the model's context, using {context}", InertWarning, stacklevel=2
        )
        return context
    return asked


def _model_source(folder: Path, model: str) -> str:
    """A model's folder, resolved like a task's; what is no folder is a name on the Hub."""
    place = beside(folder, model)
    return str(place) if place.exists() else model

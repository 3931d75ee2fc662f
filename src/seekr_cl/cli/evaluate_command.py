"""``seekr evaluate``: generate, score, and measure general ability."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoTokenizer

from seekr_cl.cli.evaluation_progress import Answered, shown
from seekr_cl.cli.output import out
from seekr_cl.cli.verdict_output import print_verdict
from seekr_cl.config.chat import Asked, set_template
from seekr_cl.config.overrides import apply_overrides, data_settings
from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, DataError, ModelError, first_line
from seekr_cl.evaluation import (
    Engine,
    TransformersEngine,
)
from seekr_cl.evaluation.answer_engines import VllmEngine
from seekr_cl.evaluation.evaluation_config import EvaluationConfig
from seekr_cl.evaluation.general import (
    BENCHMARKS,
    SEED,
    computed_otherwise,
    evaluate_general,
    listed,
    require_alike,
    with_drift,
)
from seekr_cl.evaluation.speed import line
from seekr_cl.evaluation.task_scoring import (
    GENERAL,
    SCORES,
    Scored,
    read_scores,
    require_apart,
    score_into,
    scoring_hash,
)
from seekr_cl.memory import model_hash
from seekr_cl.models.context import DEFAULT_LENGTH, context_length
from seekr_cl.models.loading import load_model, require_free
from seekr_cl.models.peft_adapters import is_adapter
from seekr_cl.models.precision import computing_in
from seekr_cl.report.evaluation_verdict import check_before, check_tests, of_evaluations, require_two_folders
from seekr_cl.report.verdict import VERDICT, Verdict
from seekr_cl.settings import as_mapping, build
from seekr_cl.system.files import file_hash, write_json
from seekr_cl.system.locks import hold
from seekr_cl.system.removal import remove_unfinished_inside
from seekr_cl.system.stop_requests import raise_here_if_stop_requested
from seekr_cl.system.visible import one_line
from seekr_cl.tasks import Encoder, StreamSpec, Task
from seekr_cl.training.fitting import NoEffectWarning
from seekr_cl.training.tracker import Tracker

_ROWS = 16
"""Prompts at a time where tokens do not decide: the harness's requests and vLLM's."""


def evaluate_command(given: Any) -> None:
    """Evaluates, and goes on where an interrupted evaluation was."""
    given.columns, given.allow_empty, given.overrides = data_settings(given.overrides)
    output = Path(given.output)
    if given.general_tasks and given.general is None:
        given.general = ""
    for name in given.general_tasks or []:
        if name != "default":
            listed(name)
    if not given.task and given.general is None:
        raise ConfigError("evaluate: nothing to evaluate on; name tasks with --task, or --general")
    if given.base and given.general is None:
        raise ConfigError("--base: only says how general ability has drifted; add --general")
    for option, number in (("--batch-size", given.batch_size), ("--limit", given.limit)):
        if number is not None and number < 1:
            raise ConfigError(f"{option}: {number} must be at least 1")
    if given.limit is not None and given.general is None:
        raise ConfigError("--limit: only cuts the tasks of general ability; add --general")
    if given.engine == "vllm" and given.general is not None:
        raise ConfigError("--general: goes through the harness with transformers; leave out --engine vllm")
    if given.engine == "vllm" and given.quantization:
        raise ConfigError("--quantization: is transformers' and bitsandbytes'; leave it out, or --engine vllm")
    if given.engine == "vllm" and is_adapter(Path(given.model)):
        raise ConfigError(
            f"{given.model}: is an adapter, --engine vllm takes plain models; seekr export --merge it first"
        )
    if given.engine == "vllm" and collectives.launched_world_size() > 1:
        raise ConfigError("--engine vllm: spreads itself over GPUs; leave out --launch and every other launcher")
    if given.before:
        require_two_folders(Path(given.before), output)
        check_before(Path(given.before))
    device = collectives.init_process_group()
    if not given.resume:
        collectives.on_main(lambda: require_free(output))
    streams = {source: StreamSpec.from_yaml(source) for source in given.task or [] if _is_stream(source)}
    asked = _settings(given, streams)
    tasks = _tasks(given, streams)
    if given.before:
        check_tests(
            Path(given.before), {one.name: {"metric": one.metric, "sha256": scoring_hash(one)} for one in tasks}
        )
    with hold(output, "evaluation"):
        if given.resume:
            collectives.on_main(lambda: remove_unfinished_inside(output))
        if tasks:
            with shown(tasks, given.quiet) as tracker:
                scored = _score_tasks(given, output, tasks, streams, asked, device, tracker)
            _print_scores(scored)
        if given.general is not None:
            _score_general(given, output, asked, device)
        told = collectives.on_main_broadcast(partial(_judge, given, output)) if given.before else None
    given.answer = {"output": given.output} | _content(output) | {"verdict": told}
    if told is not None:
        print_verdict(Verdict.from_json(told))
    else:
        out().print("nothing to compare with: --before FOLDER names a former evaluation, for a verdict on this one")
    out().print(f"scores and predictions in {output}", soft_wrap=True)


def _content(output: Path) -> dict[str, Any]:
    """What the evaluation wrote: ``scores.json``, with ``general`` beside the tasks."""
    scores = read_scores(output / SCORES) if (output / SCORES).is_file() else {}
    return scores | ({"general": read_scores(output / GENERAL)} if (output / GENERAL).is_file() else {})


def _judge(given: Any, output: Path) -> dict[str, Any]:
    """What the model lost and gained since the former evaluation, also written down."""
    verdict = of_evaluations(Path(given.before), output).to_json()
    write_json(output / VERDICT, verdict)
    if (output / SCORES).is_file():
        write_json(output / SCORES, read_scores(output / SCORES) | {"verdict": verdict})
    return verdict


@dataclass(frozen=True, slots=True)
class _Settings:
    """What streams and the command line say of conversations, of generation, and the precision that follows."""

    chat: Asked
    evaluation: EvaluationConfig
    precision: torch.dtype | None


def _score_tasks(
    given: Any,
    output: Path,
    tasks: list[Task],
    streams: dict[str, StreamSpec],
    asked: _Settings,
    device: torch.device,
    tracker: Tracker,
) -> Scored:
    engine, model_id, context = _engine(given, asked, device)
    encoder = Encoder(engine.tokenizer, _length(given.max_length, context), chat=asked.chat.chat())
    # Four bits give other answers, and are none of the engine's own settings.
    settings = {"quantization": given.quantization} if given.quantization else {}
    described = {
        "model": given.model,
        "benchmarks": [
            spec.benchmark.describe(spec.settings | {"max_length": encoder.max_length})
            for spec in streams.values()
            if spec.benchmark is not None
        ],
    }
    answered = Answered(tracker, tasks, engine)

    def note(count: int) -> None:
        answered(count)
        raise_here_if_stop_requested()

    network = engine.model if given.engine == "transformers" else None
    with computing_in(network, asked.precision) if network is not None else nullcontext():
        return score_into(output, engine, tasks, encoder, model_id, described, settings, note)


def _print_scores(scored: Scored) -> None:
    scores = scored.tasks
    table = Table("task", "metric", "score", "examples", "95% interval", "valid format")
    for name, score in scores.items():
        low, high = score["interval"]
        table.add_row(
            Text(name), score["metric"], f"{score['score']:.1f}", str(score["examples"]), f"{low:.1f} to {high:.1f}",
            f"{score['format']['valid']:.0f}%" if score.get("format") else "-",
        )  # fmt: skip
    out().print(table)
    if said := line(scored.timing):
        out().print(said, soft_wrap=True)
    scored.warn_of_broken_off()


def _settings(given: Any, streams: dict[str, StreamSpec]) -> _Settings:
    """What the streams say, and over it the command line."""
    keys = [*(one.name for one in fields(Asked)), "evaluation"]
    said = {key: spec.settings[key] for spec in streams.values() for key in keys if key in spec.settings}
    merged = apply_overrides(said, given.overrides, None)
    evaluation = build(EvaluationConfig, as_mapping(merged.pop("evaluation", None), EvaluationConfig, "evaluation"))
    if given.engine == "vllm" and evaluation.given():
        raise ConfigError(
            "evaluation: vLLM makes its own batches and loads the weights itself; use --dtype and --batch-size, or "
            "leave out --engine vllm"
        )
    trained = {key: any(spec.settings.get(key) is True for spec in streams.values()) for key in ("bf16", "fp16")}
    return _Settings(build(Asked, merged, "evaluate"), evaluation, evaluation.precision(SimpleNamespace(**trained)))


def _score_general(given: Any, output: Path, asked: _Settings, device: torch.device) -> None:
    data = Path(given.general) if given.general else None
    if data is not None and not data.is_dir():
        raise DataError(f"--general: {data} is not a folder; name one with <benchmark>/test.json, or none for the Hub")
    former = read_scores(Path(given.base) / GENERAL) if given.base and (Path(given.base) / GENERAL).is_file() else None
    if former is not None:
        require_alike(former, data=None if data is None else str(data), limit=given.limit, seed=SEED)
    result = _general_of(given.model, given, data, asked, device)
    for said in computed_otherwise(former or {}, result):
        out().print(f"note: --base: {said}", soft_wrap=True)
    base = former or (_general_of(given.base, given, data, asked, device) if given.base else None)
    if base is not None:
        result = with_drift(result, base)
    content = {"model": given.model, "base_model": given.base} | result
    collectives.on_main(partial(write_json, output / GENERAL, content))
    table = Table(
        "general ability", "shots", "examples", *(["base", "score", "drift"] if base else ["score"]), "± s.e."
    )
    for name, task in result["tasks"].items():
        numbers = [task["base"], task["score"], task["drift"]] if base else [task["score"]]
        error = "-" if task["stderr"] is None else f"{task['stderr']:.1f}"
        table.add_row(
            Text(one_line(name, None)), str(task["shots"]), str(task["examples"]), *[f"{n:.1f}" for n in numbers], error
        )
    means = [result["base_mean"], result["mean"], result["drift"]] if base else [result["mean"]]
    table.add_row("mean", "", "", *[f"{number:.1f}" for number in means], "")
    out().print(table)


def _general_of(source: str, given: Any, data: Path | None, asked: _Settings, device: torch.device) -> dict[str, Any]:
    model, tokenizer = load_model(source, given.dtype, quantization=given.quantization)
    model.to(device)  # type: ignore[arg-type]
    listing = given.general_tasks or ["default"]
    names = dict.fromkeys(name for word in listing for name in (BENCHMARKS if word == "default" else [word]))
    with computing_in(model, asked.precision):
        # Of the weights as they compute now, which may be another than they were loaded in.
        computed = {"dtype": str(model.dtype).removeprefix("torch."), "quantization": given.quantization}
        scored = evaluate_general(model, tokenizer, given.batch_size or _ROWS, data, given.limit, list(names))
    return computed | scored


def _engine(given: Any, asked: _Settings, device: torch.device) -> tuple[Any, str, int | None]:
    """The engine, what tells its model from others, and the model's context.

    The tokenizer has the template from the start: an engine may note at once where its turns end.
    """
    if given.engine == "transformers":
        model, tokenizer = load_model(given.model, given.dtype, quantization=given.quantization)
        set_template(tokenizer, asked.chat.chat_template)
        model_id = collectives.on_main_broadcast(lambda: model_hash(model))
        model.to(device)  # type: ignore[arg-type]
        engine: Engine = TransformersEngine(model, tokenizer, given.batch_size, asked.evaluation.batch_tokens)
        return engine, model_id, context_length(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(given.model)
        context = context_length(SimpleNamespace(config=AutoConfig.from_pretrained(given.model)))  # type: ignore[arg-type]
    except Exception as error:
        raise ModelError(f"{given.model}: cannot be loaded ({first_line(error)})") from error
    set_template(tokenizer, asked.chat.chat_template)
    length = _length(given.max_length, context)
    files = sorted(Path(given.model).glob("*.safetensors")) if Path(given.model).is_dir() else []
    # vLLM loads the weights itself; a name on the Hub is all there is to tell a model by.
    model_id = " ".join(file_hash(path) for path in files) or given.model
    return VllmEngine(given.model, tokenizer, given.dtype, length, given.batch_size or _ROWS), model_id, context


def _tasks(given: Any, streams: dict[str, StreamSpec]) -> list[Task]:
    tasks = [
        task
        for source in given.task or []
        for task in (streams[source].load_tasks(require_test=True) if source in streams else _test_tasks(source, given))
    ]
    require_apart(tasks, "--task", "a file or folder")
    return tasks


def _is_stream(source: str) -> bool:
    return source.endswith((".yaml", ".yml"))


def _test_tasks(source: str, given: Any) -> list[Task]:
    # A single file is what is to be tested, whatever it is called.
    data: Any = {"train": source, "test": source} if Path(source).is_file() else source
    return [
        Task.load(
            data,
            name=Path(source).stem if Path(source).is_file() else None,
            metric=given.metric or "exact_match",
            max_new_tokens=given.max_new_tokens,
            require_test=True,
            allow_empty=given.allow_empty,
            columns=given.columns,
        )
    ]


def _length(asked: int | None, context: int | None) -> int:
    """Tokens of prompt and answer together: what was asked for, but no more than the model's context."""
    if asked is None:
        return context or DEFAULT_LENGTH
    if context is not None and asked > context:
        warnings.warn(
            f"--max-length: {asked} is more than the model's context, using {context}", NoEffectWarning, stacklevel=2
        )
        return context
    return asked

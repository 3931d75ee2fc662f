"""General ability: what a model can still do that no task of the stream taught it, by lm-evaluation-harness.

The benchmarks and shots are the SEEKR paper's, which gives none for TyDiQA, BoolQ and PIQA: they have one, none and
none here. Nothing of the harness is done again: its tasks are named, or its task configs are filled with local files.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError, DataError, ModelError, first_line
from seekr_cl.evaluation.decoding import has_prompt
from seekr_cl.evaluation.general_tasks import LOCAL, local_config
from seekr_cl.models.context import context_length
from seekr_cl.system.out_of_memory import SmallerBatchWarning, is_out_of_memory, let_go
from seekr_cl.system.yaml_file import read_yaml


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark in the harness.

    Attributes:
        task: the harness's task, group or tag, or the config of one.
        shots: examples before the question; None leaves it to the task.
        metric: key of the harness's results: metric and filter; None takes the first known one.
    """

    task: str | dict[str, Any]
    shots: int | None
    metric: str | None


BENCHMARKS = {
    "mmlu": Benchmark("mmlu", 5, "acc,none"),
    "gsm8k": Benchmark("gsm8k_cot", 8, "exact_match,strict-match"),
    "bbh": Benchmark("bbh_cot_fewshot", 3, "exact_match,get-answer"),
    "tydiqa": Benchmark("tydiqa_goldp", 1, "f1,none"),
    "boolq": Benchmark("boolq", 0, "acc,none"),
    "piqa": Benchmark("piqa", 0, "acc,none"),
}
MORE = {
    "ifeval": Benchmark("ifeval", 0, "prompt_level_strict_acc,none"),
    "hellaswag": Benchmark("hellaswag", 10, "acc_norm,none"),
    "winogrande": Benchmark("winogrande", 5, "acc,none"),
    "arc_challenge": Benchmark("arc_challenge", 25, "acc_norm,none"),
    "truthfulqa": Benchmark("truthfulqa_mc2", 0, "acc,none"),
    "mmlu_pro": Benchmark("mmlu_pro", 5, "exact_match,custom-extract"),
}
"""Benchmarks that are asked for often, with the usual shots; any other of the harness's is taken by its own name."""
_USUAL = ("acc_norm", "acc", "exact_match", "f1", "prompt_level_strict_acc", "pass@1", "rougeL", "bleu", "em")
"""Metrics of tasks that are taken by name, the first that a task has."""
SEED = 1234
"""Which examples are shown as shots."""
_ALIKE = ("harness", "data", "limit", "seed")
"""What two evaluations must have in common."""


def evaluate_general(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    data: Path | None = None,
    limit: int | None = None,
    names: Sequence[str] = tuple(BENCHMARKS),
) -> dict[str, Any]:
    """Scores a model on the benchmarks of general ability; of several processes each takes whole benchmarks.

    Args:
        model: any causal language model; its training mode is left as it was.
        tokenizer: its tokenizer.
        batch_size: requests at a time.
        data: a folder of ``<benchmark>/{train,test}.json``; without it the harness fetches its own data from the Hub.
        limit: only so many examples of each task.
        names: which benchmarks: of ``BENCHMARKS``, of ``MORE``, any task of the harness as ``NAME`` or ``NAME:SHOTS``,
            or a task's YAML file.

    Returns:
        ``harness`` (its version), ``data``, ``limit``, ``tasks`` by name: ``score`` 0 to 100, ``stderr`` in the same
        unit or None, ``metric``, ``shots``, ``examples``; and their ``mean``.

    Raises:
        ConfigError: if the harness is not installed.
        DataError: if data is missing or cannot be fetched, or answers do not fit into the model's context.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from seekr_cl.evaluation.harness import PromptLM, QueryAdapterLM
    except ImportError as error:
        raise ConfigError(
            "--general: lm-evaluation-harness is not installed; pip install 'seekr-cl[general]'"
        ) from error
    configs = {name: LOCAL[name] if data is not None and name in LOCAL else listed(name) for name in names}
    _require_local(data, configs)
    # Before the first is scored, so that the last one's trouble does not cost the others' hours.
    asked = {
        name: [one.task] if isinstance(one, Benchmark) else [local_config(name, Path(str(data)))]
        for name, one in configs.items()
    }
    training = model.training
    model.eval()
    tasks = {}
    try:
        kind = QueryAdapterLM if getattr(model, "query_conditioned", False) else PromptLM if has_prompt(model) else HFLM
        # Virtual tokens of prompts take their part of the context.
        wrapped = kind(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=context_length(model))
        # Reading the harness's thousands of task files takes a minute; local ones need none of them.
        manager = TaskManager(include_defaults=any(isinstance(task, str) for (task,) in asked.values()))
        # Not shares of a benchmark: the harness draws shots as it goes, so a share's would be others.
        for name in names[collectives.rank() :: collectives.world_size()]:
            shots = configs[name].shots
            try:
                with _alone():
                    results = _in_room(
                        lm_eval.simple_evaluate,
                        wrapped,
                        tasks=asked[name],
                        num_fewshot=shots,
                        task_manager=manager,
                        limit=limit,
                        bootstrap_iters=100,
                        log_samples=False,
                        random_seed=SEED,
                        numpy_random_seed=SEED,
                        torch_random_seed=SEED,
                        fewshot_random_seed=SEED,
                    )
            except ModelError:
                raise
            except ModuleNotFoundError as error:
                raise DataError(
                    f"--general: {name} needs the package {error.name}; pip install 'seekr-cl[general]'"
                ) from error
            except (OSError, ValueError, LookupError, AssertionError, ImportError) as error:
                raise DataError(
                    f"--general: {name} cannot be evaluated ({first_line(error)}); without a network, name a folder "
                    "of local data after --general"
                ) from error
            tasks[name] = _score(results, configs[name].metric) | {"shots": _shots(results, shots)}
    finally:
        model.train(training)
    found = {name: task for of_process in collectives.all_gather_object(tasks) for name, task in of_process.items()}
    tasks = {name: found[name] for name in names}
    return {
        "harness": f"lm-evaluation-harness {lm_eval.__version__}",
        "data": None if data is None else str(data),
        "limit": limit,
        "seed": SEED,
        "batch_size": batch_size,
        "tasks": tasks,
        "mean": sum(task["score"] for task in tasks.values()) / len(tasks),
    }


def _in_room(ask: Callable[..., Any], wrapped: Any, **asked: Any) -> Any:
    """What the harness gives, in batches of half the size where they do not fit into memory, which is said once."""
    first = wrapped.batch_size_per_gpu
    while True:
        try:
            return ask(model=wrapped, **asked)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if wrapped.batch_size_per_gpu == 1:
                raise ModelError(
                    "--general: one question alone does not fit into memory; try --dtype bfloat16"
                ) from error
        let_go()
        if wrapped.batch_size_per_gpu == first:
            warnings.warn(
                f"--general: batches of {first} did not fit into memory, going on with {first // 2}, less if need be; "
                f"set --batch-size {first // 2}",
                SmallerBatchWarning,
                stacklevel=3,
            )
        wrapped.batch_size_per_gpu //= 2


def listed(name: str) -> Benchmark:
    """A benchmark by the name that a user gives.

    Raises:
        ConfigError: if its shots are no number.
        DataError: if it is a file that is no task of the harness.
    """
    known = BENCHMARKS | MORE
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        content = read_yaml(Path(name), "task")
        if not isinstance(content, dict) or not isinstance(content.get("task"), str):
            raise DataError(f"--general-tasks: {name} is no task of lm-evaluation-harness; it needs a 'task' and data")
        return Benchmark(content, None, None)
    task, sign, shots = name.partition(":")
    if sign and not (shots.isdecimal() and len(shots) < 4):
        raise ConfigError(f"--general-tasks: {name}: must be TASK or TASK:SHOTS, such as hellaswag:10")
    if not task or not all(letter.isalnum() or letter in "_-." for letter in task):
        raise ConfigError(f"--general-tasks: {name!r} cannot be a task's name")
    own = known.get(task)
    return Benchmark(own.task if own else task, int(shots) if sign else None, own.metric if own else None)


def _require_local(data: Path | None, configs: dict[str, Any]) -> None:
    """Tasks of the harness fetch their own data, which a folder of local data is there to avoid."""
    for name, one in configs.items():
        if data is not None and isinstance(one, Benchmark) and isinstance(one.task, str):
            raise ConfigError(
                f"--general-tasks: {name} fetches its data from the Hub, and {data} has local data of "
                f"{', '.join(LOCAL)}; leave out the folder, or name a task's YAML file"
            )


def _shots(results: Any, asked: int | None) -> int:
    """The shots that were shown, where the task decided them."""
    made = [count for count in results.get("n-shot", {}).values() if isinstance(count, int)]
    return asked if asked is not None else max(made, default=0)


def require_alike(base: dict[str, Any], **now: Any) -> None:
    """Refuses a former evaluation that was made in another way, which can be said before hours of a new one.

    Args:
        base: the former evaluation.
        now: of ``harness``, ``data``, ``limit`` and ``seed`` those that are known.

    Raises:
        ConfigError: naming what differs.
    """
    for key, value in now.items():
        if base.get(key) != value:
            raise ConfigError(
                f"--base: evaluated with another '{key}' ({base.get(key)!r}, now {value!r}); name the base model itself"
            )


def computed_otherwise(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What may have changed scores although the model did not, a sentence each, where two evaluations record it."""
    return [
        f"general ability was evaluated with another {key}: {before[key]} before, {after[key]} after"
        for key in ("dtype", "quantization")
        if key in before and key in after and before[key] != after[key]
    ]


def with_drift(result: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The result with the base model's scores and the change since, in points, of each task and of the mean.

    Raises:
        ConfigError: if the two were made by other harnesses, data, limits or shots, so that a change says nothing.
    """
    require_alike(base, **{key: result.get(key) for key in _ALIKE})
    tasks = {}
    for name, task in result["tasks"].items():
        former = base["tasks"].get(name)
        if former is None or any(former[key] != task[key] for key in ("metric", "shots", "examples")):
            raise ConfigError(f"--base: {name} is missing there or scored in another way; name the base model itself")
        tasks[name] = task | {"base": former["score"], "drift": task["score"] - former["score"]}
    return result | {"tasks": tasks, "base_mean": base["mean"], "drift": result["mean"] - base["mean"]}


@contextmanager
def _alone() -> Iterator[None]:
    """The harness keeps results from whoever is not the first process of a machine, as under tensor parallelism."""
    own = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if own is not None:
            os.environ["LOCAL_RANK"] = own


def _score(results: Any, metric: str | None) -> dict[str, Any]:
    """Of a group its own number, of a tag's tasks their mean, of a single task its score."""
    rows = results.get("groups") or results["results"]
    rows = rows if len(rows) == 1 else results["results"]
    metric = metric or _first_metric(rows)
    top = [row for name, row in rows.items() if metric in row and name not in _below(results)]
    if not top:
        raise DataError(f"--general: the harness gave no '{metric}'; another version may call it otherwise")
    stderr_key = metric.replace(",", "_stderr,", 1)
    errors = [row.get(stderr_key) for row in top]
    known = [error for error in errors if isinstance(error, int | float)]
    counts = results["n-samples"].values()
    return {
        "metric": metric,
        "score": float(100 * sum(row[metric] for row in top) / len(top)),
        "stderr": float(100 * sum(e * e for e in known) ** 0.5 / len(known)) if len(known) == len(top) else None,
        "examples": sum(count["effective"] for count in counts),
    }


def _first_metric(rows: Any) -> str:
    """The usual metric of a task that was taken by its name, else the first that lies between 0 and 1."""
    found = [
        key
        for row in rows.values()
        for key, value in row.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float) and 0 <= value <= 1
    ]
    usual = [key for metric in _USUAL for key in found if key.partition(",")[0] == metric]
    if not found:
        raise DataError("--general-tasks: the harness gave no metric between 0 and 1; name another task")
    return (usual or found)[0]


def _below(results: Any) -> set[str]:
    return {name for members in results.get("group_subtasks", {}).values() for name in members}

"""``seekr plan``."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console

from seekr_cl.errors import ConfigError
from seekr_cl.memory.budget import parse_bytes
from seekr_cl.models.context import DEFAULT_LENGTH
from seekr_cl.planning import Workload, adapter_size, make_plan, read_shape
from seekr_cl.planning.nodes import Cluster, terms
from seekr_cl.planning.show import show_plan, show_terms
from seekr_cl.tasks import StreamSpec
from seekr_cl.training import SeekrConfig

TASKS, EXAMPLES, ANSWER = 8, 5000, 128
"""What is assumed where nothing says otherwise: TRACE, and an answer of a few sentences."""


def plan(given: Any, spec: StreamSpec | None, config: SeekrConfig, limit: Any, out: Console) -> None:
    """Prints the plan, or under ``--json`` its numbers.

    Args:
        given: the command's options.
        spec: the stream, if one was named; its data is read only to count examples.
        config: all settings.
        limit: the stream's ``limit``.
        out: where to print.

    Raises:
        SeekrError: for a model, stream or number that cannot be used.
    """
    for option in ("tasks", "examples", "tokens", "answer_tokens", "nodes", "gpus_per_node"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')}: {value} must be at least 1")
    if spec is not None and given.tasks is not None:
        raise ConfigError(f"--tasks: would be ignored, {given.stream_file} lists its tasks; remove it")
    shape = read_shape(given.model)
    tokens = given.tokens or min(config.max_length or DEFAULT_LENGTH, shape.context or DEFAULT_LENGTH)
    answer = given.answer_tokens or min(config.max_answer_length or ANSWER, max(1, tokens - 1))
    if answer >= tokens:
        raise ConfigError(f"--answer-tokens: {answer} leaves no prompt in {tokens} tokens; lower it or raise --tokens")
    examples, epochs = _tasks(given, spec, config, limit)
    made = make_plan(shape, config, Workload(examples, epochs, tokens, answer), adapter_size(given.model, config.peft))
    cluster = None
    if given.nodes is not None:
        memory = parse_bytes("--gpu-memory", given.gpu_memory or "80GB")
        cluster = Cluster(given.nodes, given.gpus_per_node or 8, memory)
    elif given.gpus_per_node is not None or given.gpu_memory is not None:
        raise ConfigError("--gpus-per-node, --gpu-memory: would be ignored; say --nodes too")
    if given.json:
        grown = (
            [] if cluster is None else [asdict(term) | {"small": term.small} for term in terms(made, config, cluster)]
        )
        print(json.dumps(made.to_json() | ({"terms": grown} if cluster is not None else {}), indent=2))
        return
    show_plan(made, out)
    if cluster is not None:
        show_terms(made, config, cluster, out)


def _tasks(given: Any, spec: StreamSpec | None, config: SeekrConfig, limit: Any) -> tuple[list[int], list[float]]:
    usual = float(config.num_train_epochs)
    if spec is None:
        count = given.tasks or TASKS
        return [given.examples or EXAMPLES] * count, [usual] * count
    epochs = [float(task.epochs or usual) for task in spec.tasks]
    if given.examples is not None:
        return [given.examples] * len(epochs), epochs
    return [len(task.train) for task in spec.load_tasks(require_test=False, limit=limit)], epochs

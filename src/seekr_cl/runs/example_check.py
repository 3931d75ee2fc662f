"""Every example of a run, tokenized once before anything is learned, so that no bad row is found after days."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError
from seekr_cl.evaluation import get_metric
from seekr_cl.tasks import Task
from seekr_cl.training.context_check import check_task, check_tokens, tests_encoder
from seekr_cl.training.fitting import fitting, make_encoder


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a task's training examples are.

    Attributes:
        examples: that are learned from.
        left_out: that do not fit and are skipped, as ``long_completions: skip`` wants.
        longest: tokens of the longest.
        mean: tokens of one on average.
        learned: tokens that are learned, on average.
        cut: prompts that are truncated on the left.
        limit: tokens that an example may have.
    """

    examples: int
    left_out: int
    longest: int
    mean: float
    learned: float
    cut: int
    limit: int


def check_tasks(tasks: Sequence[Task], probes: Sequence[Task]) -> None:
    """Makes sure that metrics are known and that no two tasks are called alike.

    Raises:
        ConfigError: naming the task.
    """
    for task in [*tasks, *probes]:
        try:
            get_metric(task.metric)
        except ConfigError as error:
            raise ConfigError(f"task '{task.name}': {error}") from error
    names = [task.slug for task in [*tasks, *probes]]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two tasks or probes of the run are called '{name}'; give one another name")


def stages_of(tasks: Sequence[Task], config: SeekrConfig) -> list[list[Task]]:
    """What is learned in one go, in order."""
    return [list(tasks)] if config.method.kind.multi_task else [[task] for task in tasks]


def check_examples(
    model: Any, tokenizer: PreTrainedTokenizerBase, config: SeekrConfig, tasks: Sequence[Task], probes: Sequence[Task]
) -> dict[str, Lengths]:
    """Tokenizes all examples and prompts.

    Args:
        model: as it is to be trained, before the first of the tasks.
        tokenizer: its tokenizer.
        config: all settings.
        tasks: in order.
        probes: tests beside theirs.

    Returns:
        by task, how long its examples are.

    Raises:
        SeekrError: naming the task and the row that cannot be learned or asked.
    """
    encoder = make_encoder(config, model, tokenizer)
    stages, found = stages_of(tasks, config), dict[str, Lengths]()
    for number, stage in enumerate(stages, start=1):
        for task in stage:
            before = encoder.cut_count
            examples, encoded = fitting(task, encoder, config)
            check_task(model, config, task, examples, encoded, number, len(stages))
            lengths = [len(one.input_ids) for one in encoded]
            found[task.name] = Lengths(
                len(examples),
                len(task.train) - len(examples),
                max(lengths),
                sum(lengths) / len(lengths),
                sum(one.learnable for one in encoded) / len(encoded),
                encoder.cut_count - before,
                encoder.max_length,
            )
    asked = tests_encoder(model, tokenizer, config, encoder, len(stages))
    for task in [*tasks, *probes]:
        prompts = [asked.encode_prompt(example, reserve=task.max_new_tokens) for example in task.test]
        check_tokens(model, task.name, prompts)
    return found

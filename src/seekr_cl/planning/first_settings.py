"""A first settings file for a model, data and a machine: sensible values, each with its reason as a comment."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from seekr_cl.config.rates import adapter_rate, rate_of_size
from seekr_cl.config.seekr_config import SeekrConfig
from seekr_cl.errors import ConfigError
from seekr_cl.models.peft_adapters import LORA
from seekr_cl.planning.fit import BATCH, ROOM, choose, need
from seekr_cl.planning.shape import ModelShape, adapter_size
from seekr_cl.system.machine import Machine
from seekr_cl.system.sizes import size
from seekr_cl.tasks import Task

LARGE = 3e9
"""Weights above which an adapter is proposed: all of them take 16 bytes each in training."""
KEPT = 0.01, 16
"""Share of a task that is kept, and the fewest samples where there are so many."""
EPOCHS, FEWEST_STEPS = (3, 10), 60
"""Fewest and most passes over the data, and how many optimizer steps a task should have if these allow."""
_SHORT, _LONG, _STEP = 3, 12, 16
_METHOD = "How forgetting is held off; 'seekr methods' lists all."
_AS_GOOD = " With answers of one label 'derpp' kept as much in a hundredth of the bytes (docs/what_helps.md)."


@dataclass(frozen=True, slots=True)
class DataSet:
    """One task's data.

    Attributes:
        source: file, folder or ``hub:`` name.
        task: as it was read.
        test: file with its tests, where they are not in ``source``.
    """

    source: str
    task: Task
    test: str | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What the user said.

    Attributes:
        model: folder or Hub name.
        data: the tasks, in order.
        method: its name.
        adapter: whether an adapter is trained; ``None`` leaves it to the model's size.
        keep: samples of each task, or a share below 1; ``None`` leaves it to the data's size.
    """

    model: str
    data: Sequence[DataSet]
    method: str = "seekr"
    adapter: bool | None = None
    keep: float | None = None


@dataclass(slots=True)
class Proposal:
    """A settings file.

    Attributes:
        is_stream: whether it is for ``seekr run``; else for ``seekr learn --config``.
        lines: of the file.
        said: the settings that were chosen, with reasons.
    """

    is_stream: bool
    lines: list[str] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, value: Any, reason: str) -> None:
        """A setting with its reason."""
        self.lines += [f"# {line}" for line in _wrapped(reason)] + [f"{key}: {scalar(value)}", ""]
        self.said.append((f"{key}: {scalar(value)}", reason))

    @property
    def text(self) -> str:
        """The file's content."""
        return "\n".join(self.lines).rstrip("\n") + "\n"


def scalar(value: Any) -> str:
    """A value as YAML in one line.

    Raises:
        ConfigError: for text that no YAML file can hold.
    """
    if isinstance(value, str):
        if "${" in value:
            raise ConfigError(f"{value!r}: ${{...}} in a settings file is a variable; rename the file or folder")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError(f"{value!r}: is not UTF-8, so no settings file can name it; rename it") from None
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 30, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def propose(
    answers: Answers, folder: Path, shape: ModelShape | None, machine: Machine, tokenizer: Any, base: SeekrConfig
) -> Proposal:
    """The file.

    Args:
        answers: what the user said.
        folder: where the file will lie; paths in it are seen from there.
        shape: the model; ``None`` if its config is of no known kind.
        machine: where it will be trained.
        tokenizer: the model's.
        base: default settings, for what a training takes.
    """
    made = Proposal(is_stream=all(one.test is not None or one.task.test for one in answers.data))
    made.lines += ["# Settings of seekr-cl, written by seekr init; every other one is in docs/settings.md.", ""]
    if made.is_stream:
        made.add("model", _from(folder, answers.model), "The model to begin with: a folder, or a name on the Hub.")
    kind = base.method.kind
    adapter, why = (False, "") if kind.adapters else _adapter(answers, shape, machine, base)
    made.add("method", answers.method, _METHOD + (_AS_GOOD if kind.name == "seekr" else ""))
    if kind.adapters:
        made.lines += [f"# {answers.method} trains adapters or prompts of its own; the model's weights stay.", ""]
    elif adapter:
        made.add("peft", "lora", why)
    else:
        made.lines += [*(f"# {line}" for line in _wrapped(why)), "# peft: lora", ""]
    _training(made, answers, adapter, shape, machine, base)
    if machine.kind == "cpu" and base.use_cpu:
        made.add("use_cpu", True, "As you chose.")
    if kind.keeps:
        _keep(made, answers)
    if made.is_stream:
        made.lines += ["# The tasks, in the order in which they are learned; all are tested after each."]
        made.lines += ["tasks:", *(line for one in answers.data for line in _entry(one, folder, tokenizer))]
    return made


def _adapter(answers: Answers, shape: ModelShape | None, machine: Machine, base: SeekrConfig) -> tuple[bool, str]:
    if answers.adapter is not None:
        what = "an adapter: small to keep and to hand over" if answers.adapter else "all weights; an adapter would be"
        return answers.adapter, f"As you chose: {what}."
    if shape is None or not shape.parameters:
        return False, "All weights are trained; an adapter would be"
    takes = need(shape, base, None, 1, 256, machine.bf16).total
    if shape.parameters > LARGE or takes > ROOM * machine.memory:
        why = f"training all {shape.parameters / 1e9:.1f}G weights takes about {size(takes)} of {size(machine.memory)}"
        return True, f"An adapter (LoRA): {why}."
    return False, f"All {shape.parameters / 1e6:.0f}M weights are trained, about {size(takes)}; an adapter would be"


def _training(
    made: Proposal,
    answers: Answers,
    adapter: bool,
    shape: ModelShape | None,
    machine: Machine,
    base: SeekrConfig,
) -> None:
    if base.training_sources["learning_rate"] == "method":
        rate, why = float(base.learning_rate or 0.0), f"That of {answers.method}'s paper or official code."
    elif adapter:
        rate, why = adapter_rate(LORA["peft_type"]), "A LoRA's: ten times and more that of all weights."
    else:
        count = shape.parameters if shape is not None and shape.parameters else 7e9
        rate = rate_of_size(int(count))
        why = "Of all weights of a model of this size: 1e-05 at seven billion, more for smaller ones."
    made.add("learning_rate", rate, why)
    made.add("num_train_epochs", *_epochs(min(len(one.task.train) for one in answers.data)))
    size_of = adapter_size(answers.model, LORA) if adapter and shape is not None else None
    chosen = {one.key: one for one in choose({}, base, machine, shape, size_of)}
    if one := chosen.get("bf16"):
        made.add("bf16", True, f"{one.reason[0].upper()}{one.reason[1:]}.")
    else:
        what = "No GPU here that computes in bfloat16" if machine.kind != "cuda" else "This GPU has no bfloat16"
        made.lines += [f"# {what}: everything is float32. On one that does:", "# bf16: true", ""]
    batch = chosen.get("per_device_train_batch_size")
    reason = f"Smaller than 8 because {batch.reason}." if batch else "Examples of a step; lower it if memory runs out."
    made.add("per_device_train_batch_size", batch.value if batch else base.per_device_train_batch_size, reason)
    if batch:
        made.add("gradient_accumulation_steps", chosen["gradient_accumulation_steps"].value, "So a step still sees 8.")


def _epochs(examples: int) -> tuple[int, str]:
    """Passes over each task's data, and why so many: of few examples a pass is a handful of steps."""
    steps = -(-examples // BATCH)
    passes = max(EPOCHS[0], min(EPOCHS[1], -(-FEWEST_STEPS // steps)))
    if passes == EPOCHS[0]:
        return passes, "Passes over each task's data."
    return passes, f"Passes over each task's data: one over {examples} examples is only {steps} steps."


def _keep(made: Proposal, answers: Answers) -> None:
    counts = [len(one.task.train) for one in answers.data]
    if answers.keep is not None:
        key = "samples" if answers.keep >= 1 else "ratio"
        value: Any = int(answers.keep) if key == "samples" else answers.keep
        why = "What is kept of each task and replayed later, as you chose."
    elif min(counts) * KEPT[0] < KEPT[1]:
        key, value = "samples", min(KEPT[1], -(-min(counts) // 4))
        why = f"Samples kept of each task and replayed later; one in a hundred of {min(counts)} examples would be few."
    else:
        key, value = "ratio", KEPT[0]
        why = "One example in a hundred is kept and replayed later."
    made.add("replay", {key: value}, f"{why} Their texts lie in the memory's folder.")
    made.lines += ["# What the base model can do is kept too if you give examples of it:", "# general: FILE.jsonl", ""]


def _entry(one: DataSet, folder: Path, tokenizer: Any) -> Iterable[str]:
    tests = one.task.test
    answers = [_answer(example) for example in tests]
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers]
    words = median(len(text.split()) for text in answers)
    metric, why = ("exact_match", "answers are short") if words <= _LONG else ("rouge_l", "answers are long")
    most = -(-(max(tokens) + 1) // _STEP) * _STEP
    yield f"- name: {scalar(one.task.name)}"
    yield f"  data: {scalar(_from(folder, one.source))}"
    if one.test is not None:
        yield f"  test: {scalar(_from(folder, one.test))}"
    yield f"  metric: {metric}  # {why}; docs/evaluation.md lists the others"
    yield f"  max_new_tokens: {most}  # the longest of {len(tests)} answers has {max(tokens)} tokens"


def _answer(example: Any) -> str:
    """What a test wants written; of a conversation, what its last turn says."""
    if example.messages is None:
        return str(example.completion)
    return str(example.messages[-1].get("content") or "")


def _from(folder: Path, place: str) -> str:
    """A path as it is seen from a folder; a name on the Hub stays as it is."""
    path = Path(os.path.expanduser(place))
    if place.startswith("hub:") or not path.exists():
        return place
    if path.is_absolute():
        return str(path)
    return os.path.relpath(path, folder)


def _wrapped(text: str, width: int = 110) -> list[str]:
    """Lines of a comment: no text of the user's may end one."""
    words, lines = " ".join(text.split()).split(" "), [""]
    for word in words:
        lines = [*lines, word] if len(lines[-1]) + len(word) > width else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return lines

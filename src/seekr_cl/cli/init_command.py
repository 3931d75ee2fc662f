"""``seekr init``: a first settings file, from options or from questions."""

import shlex
import sys
from pathlib import Path
from typing import Any

from seekr_cl.cli.output import out
from seekr_cl.config.seekr_config import SeekrConfig, config_from
from seekr_cl.errors import ConfigError, OutputError
from seekr_cl.models.loading import load_tokenizer
from seekr_cl.planning.first_settings import Answers, DataSet, Proposal, propose
from seekr_cl.planning.fit import known_shape
from seekr_cl.system.files import write_bytes
from seekr_cl.system.machine import this_machine
from seekr_cl.system.visible import visible
from seekr_cl.system.yaml_file import parse_yaml
from seekr_cl.tasks import Task
from seekr_cl.tasks.stream import task_spec


def init_command(given: Any) -> None:
    """Writes the file and says what comes next.

    Raises:
        SeekrError: for a model or data that cannot be used, or a file that is there already.
    """
    if given.file is None:
        # The list of an option before it has taken it.
        lists = [one for one in (given.data, given.test) if one and one[-1].endswith((".yaml", ".yml"))]
        given.file = lists[0].pop() if lists else "seekr.yaml"
    file = Path(given.file)
    if file.exists():
        raise OutputError(f"{file}: already exists; name another file, or remove it first")
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{file}: is no .yaml; seekr run and seekr validate take settings from .yaml files")
    answers = _answers(given)
    machine = this_machine(given.use_cpu)
    base = _base(answers.method, given.use_cpu)
    made = propose(answers, file.parent, known_shape(answers.model), machine, load_tokenizer(answers.model), base)
    _check(made, answers, str(file))
    write_bytes(file, made.text.encode("utf-8"))
    console, name = out(), shlex.quote(str(file))
    for setting, reason in made.said:
        console.print(f"{visible(setting)}  # {visible(reason)}", soft_wrap=True)
    console.print(f"written: {file}", soft_wrap=True)
    if made.is_stream:
        check, go = f"seekr validate {name}", f"seekr run {name} --output run"
    else:
        names = shlex.join(["--model", answers.model, "--task", answers.data[0].source])
        words = f"{names} --memory memory --output model-1"
        check, go = f"seekr validate {name} {words}", f"seekr learn --config {name} {words}"
        console.print("there is no test data, so it is for seekr learn; with --test it would be for seekr run")
    console.print(f"next: {visible(check)}\nthen: {visible(go)}", soft_wrap=True)


def _check(made: Proposal, answers: Answers, file: str) -> None:
    """Reads what is about to be written as the commands will."""
    settings = dict(parse_yaml(made.text))
    for entry in settings.pop("tasks", []):
        task_spec(entry, file, Path())
    settings.pop("model", None)
    if answers.adapter and "peft" not in settings:
        raise ConfigError(f"--adapter: method {answers.method} trains adapters of its own; leave it out")
    config_from(settings, "trainer", file)


def _base(method: str, use_cpu: bool) -> SeekrConfig:
    return config_from({"method": method} | ({"use_cpu": True} if use_cpu else {}), "trainer", "--method")


def _answers(given: Any) -> Answers:
    asks = sys.stdin.isatty() and not (given.model and given.data)
    model = given.model or (_ask("model (folder or Hub name)") if asks else None)
    sources = given.data or (_several("data: a file or folder for each task, with blanks between") if asks else [])
    tests = given.test or (_several("test files, as many (empty: none, or in the folders)", "") if asks else [])
    if not model or not sources:
        missing = "--model" if not model else "--data"
        raise ConfigError(f"{missing}: missing; name it, or start seekr init in a terminal to be asked")
    adapter, keep = given.adapter, given.keep
    if asks and adapter is None:
        said = _ask("train all weights or an adapter? (full, adapter, empty: by the model's size)", "").lower()
        if said not in ("full", "adapter", ""):
            raise ConfigError(f"'{said}' is neither full nor adapter; answer with one of them or nothing")
        adapter = None if not said else said == "adapter"
    if asks and keep is None:
        keep = _number(_ask("samples to keep of each task, or a share such as 0.01 (empty: by the data's size)", ""))
    if keep is not None and not (0 < keep < 1 or (keep >= 1 and keep == int(keep))):
        raise ConfigError(f"--keep: {keep:g} is neither a share between 0 and 1 nor a whole number of samples")
    if tests and len(tests) != len(sources):
        raise ConfigError(f"--test: {len(tests)} files for {len(sources)} tasks; name one for each of --data")
    data = [_data(source, tests[number] if tests else None) for number, source in enumerate(sources)]
    without = [one.source for one in data if not one.task.test]
    if without and len(data) > 1:
        raise ConfigError(
            f"--data: {', '.join(without)}: no tests, and a stream tests each task; name them with --test, or give one "
            "task for seekr learn"
        )
    names = [one.task.slug.casefold() for one in data]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--data: two tasks are called '{twice}', after their files; rename one of them")
    return Answers(model, data, given.method or "seekr", adapter, keep)


def _data(source: str, test: str | None) -> DataSet:
    return DataSet(source, Task.load(source if test is None else {"train": source, "test": test}), test)


def _ask(question: str, default: str | None = None) -> str:
    while True:
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise ConfigError(f"{question}: no answer; give it as an option")
        if line.strip() or default is not None:
            return line.strip() or str(default)


def _several(question: str, default: str | None = None) -> list[str]:
    try:
        return shlex.split(_ask(question, default))
    except ValueError as error:
        raise ConfigError(f"{question}: {error}; put names with blanks in quotes") from None


def _number(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"'{text}' is not a number of samples, nor a share such as 0.01") from None

"""``seekr memory``: what can be done to a memory, and what is said about it."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from seekr_cl.cli.output import out
from seekr_cl.errors import ConfigError, MemoryFormatError
from seekr_cl.memory import ReplayMemory, archive
from seekr_cl.memory import maintenance as upkeep
from seekr_cl.memory.lineage import Generation, Lineage, settled
from seekr_cl.memory.shard import StoredSamples
from seekr_cl.memory.store import last_task
from seekr_cl.runs import traces
from seekr_cl.system.locks import hold
from seekr_cl.system.removal import remove_unfinished
from seekr_cl.system.sizes import size


def show(given: Any) -> None:
    """What the current generation holds, by task or sample by sample."""
    memory = ReplayMemory.open(given.folder)
    current = memory.current
    assert current is not None
    if given.task is not None and given.task not in [task.name for task in memory.tasks]:
        raise ConfigError(f"--task: this memory keeps nothing of a task {given.task!r}")
    if given.samples or given.task is not None:
        given.answer = _show_samples(memory, given.task)
        return
    given.answer = _described(memory, current)
    _say(
        f"{memory.path}: generation {current.number} ({current.label}), {size(memory.num_bytes)}, "
        f"method {_method(current)}, written {current.content['written']}"
    )
    _say(f"model {memory.model_sha256}, tokenizer {memory.tokenizer_sha256}")
    state = current.method_state
    if state is not None:
        _say(f"carried to the next task besides samples: the state of {state['method']}, {size(state['bytes'])}")
    table = Table("task", "samples", "of", "tokens", "answer positions", "heads", "layers", "queries", "bytes")
    for task, record in zip(memory.tasks, current.tasks):
        totals = task.totals
        heads = sum(len(heads) for heads in task.heads.values())
        counts = (totals.tokens, totals.positions, heads, len(task.heads), totals.queries)
        of, num_bytes = str(task.info.get("examples", "-")), sum(file["bytes"] for file in record["files"])
        table.add_row(task.name, str(totals.samples), of, *map(str, counts), size(num_bytes))
    out().print(table)


def _described(memory: ReplayMemory, current: Generation) -> dict[str, Any]:
    """``show`` for a program."""
    tasks = [
        {
            "task": task.name,
            "of": task.info.get("examples"),
            **asdict(task.totals),
            "heads": {str(layer): heads for layer, heads in task.heads.items()},
            "bytes": sum(file["bytes"] for file in record["files"]),
        }
        for task, record in zip(memory.tasks, current.tasks)
    ]
    return {
        "memory": str(memory.path),
        "generation": current.label,
        "bytes": memory.num_bytes,
        "method": current.content["method"],
        "written": current.content["written"],
        "model_sha256": memory.model_sha256,
        "tokenizer_sha256": memory.tokenizer_sha256,
        "method_state": current.method_state,
        "tasks": tasks,
    }


def log(given: Any) -> None:
    """One line a generation, the current one marked."""
    lineage, kept, on_line = settled(Path(given.folder), partial(_generations, given.folder))
    line = {one.label for one in on_line}
    given.answer = [
        {
            "generation": one.label,
            "current": one.record["file"] == lineage.current,
            "on_line": one.label in line,
            "learned": one.learnt,
            "written": one.content["written"],
            "samples": sum(task["totals"]["samples"] for task in one.tasks),
            "bytes": one.num_bytes,
            "model_sha256": one.content["model_sha256"],
            "method": one.content["method"],
        }
        for one in kept
    ]
    for one in kept:
        samples = sum(task["totals"]["samples"] for task in one.tasks)
        names = "+".join(one.learnt) or "no task"
        forgotten = " (forgotten)" if any("forgotten" in entry for entry in one.content["learnt"]) else ""
        mark = "*" if one.record["file"] == lineage.current else " " if one.label in line else "-"
        _say(
            f"{mark} {one.label}  {names}{forgotten}  {one.content['written'][:10]}  {samples} samples  "
            f"{size(one.num_bytes)}  model {one.content['model_sha256'][:12]}  {_method(one)}"
        )
    _say("* is current; - is not on its line" if len(line) < len(lineage.records) else "* is current")


def _generations(folder: str) -> tuple[Lineage, list[Generation], list[Generation]]:
    lineage = upkeep.opened(folder)
    return lineage, lineage.all(), lineage.line()


def verify(given: Any) -> None:
    """Every file of every kept generation, read and compared."""
    whole, broken = upkeep.verify(given.folder)
    if broken:
        raise MemoryFormatError("\nerror: ".join(broken))
    leftovers = upkeep.opened(given.folder).leftovers()
    _say(f"{given.folder}: {len(whole)} generations, every file is what was written")
    if leftovers:
        _say(f"{len(leftovers)} files of an interrupted command are left over; 'seekr memory gc' removes them")


def rollback(given: Any) -> None:
    """Another generation becomes the current one."""
    one = upkeep.rollback(given.folder, given.to)
    folder = one.content["model_folder"]
    _say(f"{given.folder}: generation {one.label}, after task '{last_task(one)}', is current again")
    where = f"was written to {folder}" if folder else "lies where it was written"
    _say(f"it belongs to the model after that task: sha256 {one.content['model_sha256']}, which {where}")
    _say("continue learning from that model; the generations after it stay until 'seekr memory gc'")


def forget(given: Any) -> None:
    """A task or a sample goes from every generation, and from the folders of runs that are named."""
    what = f"task '{given.task}'" if given.sample is None else f"sample {given.sample}"
    wanted = traces.Wanted(given.task, given.sample)
    folders = [Path(folder) for folder in given.everywhere or []]
    for folder in folders:
        traces.check_folder(folder)
    elsewhere = _known_folders(Path(given.folder), folders)
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(hold(folder, "run"))
            inner = folder / "memory"
            if inner.is_dir() and not inner.samefile(given.folder):
                held.enter_context(hold(inner, "memory"))
        _forget(given, what, wanted, folders)
    left = {folder: found for folder in elsewhere if (found := traces.find(folder, wanted))}
    for found in left.values():
        for trace in found:
            _say(f"left: {trace.path}: {trace.what}")
    if left:
        named = " ".join(shlex.quote(str(folder)) for folder in left)
        _say(f"the same command with --everywhere {named} removes these")


def _forget(given: Any, what: str, wanted: traces.Wanted, folders: list[Path]) -> None:
    try:
        done = upkeep.forget(given.folder, task=given.task, sample=given.sample)
    except ConfigError:
        # Forgotten here before; the folders may hold it all the same.
        found = [trace for folder in folders for trace in traces.remove(folder, wanted)]
        if not found:
            raise
        _say_removed(what, found)
        return
    _say_removed(what, [trace for folder in folders for trace in traces.remove(folder, wanted)])
    _say(
        f"{what}: {done.samples} samples with texts and signals removed from generations "
        f"{', '.join(done.generations)}; {size(done.freed)} deleted"
    )
    _say("what cannot be undone here: models keep what they have learned from it;")
    if done.importance:
        _say("head importance is a sum over tasks that holds this one's statistics and cannot be taken apart;")
    if done.method_state:
        _say(f"the state of {', '.join(done.method_state)} was formed with it and cannot be taken apart;")
    _say("copies, exports and backups made before still hold it, and so may freed blocks of the disk")


def _say_removed(what: str, found: list[traces.Trace]) -> None:
    for trace in found:
        _say(f"{what}: removed from {trace.path}: {trace.what}")


def _known_folders(memory: Path, named: list[Path]) -> list[Path]:
    """Runs and outputs that the memory knows of: the run it lies in, and where its models were written."""
    found = [memory.absolute().parent]
    for one in upkeep.opened(memory).all():
        if one.content["model_folder"]:
            model = Path(one.content["model_folder"])
            found += [model, *([model.parent.parent] if model.parent.name == "models" else [])]
    known = {folder.resolve() for folder in named}
    ours = []
    for folder in dict.fromkeys(found):
        with suppress(ConfigError, OSError):
            traces.check_folder(folder)
            if folder.resolve() not in known:
                ours.append(folder)
    return ours


def collect(given: Any) -> None:
    """What is not needed goes."""
    dropped, freed = upkeep.collect(given.folder, given.keep)
    names = f"generations {', '.join(dropped)}" if dropped else "no generation"
    _say(f"{given.folder}: {names} removed, {size(freed)} freed")


def export(given: Any) -> None:
    """One file for another machine."""
    num_bytes = archive.export(given.folder, given.file, every=given.all)
    _say(f"{given.file}: {size(num_bytes)}; 'seekr memory import FOLDER {Path(given.file).name}' unpacks it")


def import_(given: Any) -> None:
    """A memory from such a file."""
    memory = archive.import_(given.file, given.folder)
    _say(
        f"{memory.path}: generation {memory.generation}, {len(memory.samples)} samples, every file compared; "
        f"it belongs to the model with sha256 {memory.model_sha256}"
    )


def _alone(command: Callable[[Any], None]) -> Callable[[Any], None]:
    """The command while nobody learns into the memory or changes it."""

    def run(given: Any) -> None:
        with hold(Path(given.folder), "memory"):
            remove_unfinished(Path(given.folder))
            command(given)

    return run


COMMANDS: dict[str, Callable[[Any], None]] = {
    "show": show,
    "log": log,
    "verify": verify,
    "rollback": _alone(rollback),
    "forget": _alone(forget),
    "gc": _alone(collect),
    "export": export,
    "import": _alone(import_),
}


def _show_samples(memory: ReplayMemory, wanted: str | None) -> list[dict[str, Any]]:
    found = []
    table = Table("id", "task", "tokens", "prompt", "completion")
    for task in memory.tasks:
        if wanted not in (None, task.name) or not isinstance(task.samples, StoredSamples):
            continue
        for number in range(len(task.samples)):
            prompt, completion = task.samples.text(number)
            row = task.samples.sample_id(number), task.name, task.samples.num_tokens(number)
            found.append(dict(zip(("id", "task", "tokens", "prompt", "completion"), (*row, prompt, completion))))
            table.add_row(*map(str, row), _short(prompt), _short(completion))
    out().print(table)
    return found


def _short(text: str) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= 40 else f"{line[:39]}…"


def _method(one: Generation) -> str:
    method = one.content["method"]
    return f"{method.get('name', '-')} (preset {method.get('preset', '-')})"


def _say(line: str) -> None:
    out().print(line, soft_wrap=True)

"""The demo: a small model that ships with the package learns six tasks, with and without help against forgetting."""

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from seekr_cl.demo import variants
from seekr_cl.demo.skills import BASE_SKILLS, STREAM_SKILLS, examples
from seekr_cl.demo.variants import Variant, make_variant
from seekr_cl.errors import SeekrError
from seekr_cl.evaluation import ScoreMatrix
from seekr_cl.models.loading import require_free
from seekr_cl.os_errors import describe
from seekr_cl.report import comparison_table, score_table
from seekr_cl.report.drawing import draw
from seekr_cl.system.files import write_json
from seekr_cl.tasks import Task
from seekr_cl.training.progress import console, wants_bar

_POLL_SECONDS = 0.5
_LINE_SECONDS = 20


def demo(
    output: Path,
    *,
    methods: list[str] | None = None,
    seed: int = 0,
    quick: bool = False,
    settings: dict[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Runs the demo and prints the comparison.

    Args:
        output: folder for data, runs, plots and ``comparison.json``.
        methods: variants to run; default sequential fine-tuning, replay, DER++ and SEEKR, the last two also with a
            task 0 of base skills.
        seed: of data order, draws and dropout; the data themselves are always the same.
        quick: two tasks and few examples, to see that everything runs.
        settings: settings that replace the demo's.
        quiet: show nothing while it works.

    Returns:
        The content of ``comparison.json``.

    Raises:
        SeekrError: for bad input, or what a run raised.
    """
    require_free(output)
    names = list(dict.fromkeys(methods or variants.DEFAULT_VARIANTS))
    general = str(output / "data" / "base.json")
    chosen = [make_variant(name, seed, general, settings or {}) for name in names]
    if quick:
        for variant in chosen:
            variant.settings["num_train_epochs"] = 1
    _write_data(output / "data", quick)
    started = time.perf_counter()
    _run_all(chosen, output, quick, quiet)
    results, matrices = _collect(names, output)
    write_json(output / "comparison.json", results)
    draw("plot_comparison", matrices, output / "comparison.png")
    draw("plot_retention", matrices, output / "base_skills.png")
    out = Console(highlight=False)
    out.print(score_table(matrices[names[-1]]))
    out.print(comparison_table(results))
    out.print(
        f"{len(names)} runs in {time.perf_counter() - started:.0f} s. 'base skills kept' is mean exact match on the "
        "eight skills the base model had mastered. Runs marked +general put "
        f"{variants.GENERAL_SAMPLES} samples of these into the memory before the first task (task 0).\n"
        f"Runs, plots (comparison.png, base_skills.png) and comparison.json are in {output}",
        soft_wrap=True,
        markup=False,
    )
    return results


def _write_data(folder: Path, quick: bool) -> None:
    """The stream's tasks in TRACE's layout, probes of the base skills, and general data for task 0."""
    train, test, probe = (
        (40, 20, 8)
        if quick
        else (
            variants.TRAIN_EXAMPLES,
            variants.TEST_EXAMPLES,
            variants.PROBE_EXAMPLES,
        )
    )
    for skill in STREAM_SKILLS[: 2 if quick else None]:
        rows = examples(skill, train + test, seed=1)
        write_json(folder / "stream" / skill.name / "train.json", rows[:train])
        write_json(folder / "stream" / skill.name / "test.json", rows[train:])
    general = []
    for skill in BASE_SKILLS:
        rows = examples(skill, variants.GENERAL_POOL + probe, seed=2)
        general += rows[: variants.GENERAL_POOL]
        write_json(folder / "base" / skill.name / "train.json", rows[:1])
        write_json(folder / "base" / skill.name / "test.json", rows[variants.GENERAL_POOL :])
    write_json(folder / "base.json", general)


def _load(output: Path, quick: bool) -> tuple[list[Task], list[Task]]:
    names = [skill.name for skill in STREAM_SKILLS[: 2 if quick else None]]
    stream = [Task.load(str(output / "data" / "stream" / name), max_new_tokens=14) for name in names]
    probes = [Task.load(str(output / "data" / "base" / skill.name), max_new_tokens=14) for skill in BASE_SKILLS]
    return stream, probes


def _run_all(chosen: list[Variant], output: Path, quick: bool, quiet: bool) -> None:
    """Each variant in a process of one thread, as many at once as there are cores."""
    # One process imports torch and transformers, and those of the variants are forked from it, where there is fork.
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["seekr_cl.runs.stream_run"])
    events = context.Queue()
    waiting, running = list(chosen), dict[str, Any]()
    with _board([variant.name for variant in chosen], quiet) as show:
        try:
            while waiting or running:
                while waiting and len(running) < max(1, os.cpu_count() or 1):
                    variant = waiting.pop(0)
                    process = context.Process(target=_work, args=(variant, output, quick, events), daemon=True)
                    process.start()
                    running[variant.name] = process
                try:
                    kind, name, value = events.get(timeout=_POLL_SECONDS)
                except Exception:
                    lost = [name for name, process in running.items() if process.exitcode not in (None, 0)]
                    if lost:
                        raise SeekrError(f"the run of {lost[0]} died (out of memory?); try again") from None
                    continue
                if kind == "error":
                    raise SeekrError(f"{name}: {value}")
                if kind == "done":
                    running.pop(name).join()
                show(kind, name, value)
        finally:
            for process in running.values():
                process.terminate()


def _work(variant: Variant, output: Path, quick: bool, events: Any) -> None:
    """One variant, in its own process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from seekr_cl.runs.stream_run import run
    from seekr_cl.training import config_from

    torch.set_num_threads(1)
    try:
        stream, probes = _load(output, quick)
        config = config_from({**variant.settings, "progress": "none"}, str(output / "trainer"), "demo")
        with as_file(files("seekr_cl.demo") / "model") as model:
            run(
                model,
                stream,
                output / "runs" / variant.name,
                config,
                probes=probes,
                callbacks=[_Report(variant.name, len(stream), events)],
            )
        events.put(("done", variant.name, 1.0))
    except SeekrError as error:
        events.put(("error", variant.name, str(error)))
    except OSError as error:
        events.put(("error", variant.name, describe(error)))
    except Exception:
        events.put(("error", variant.name, traceback.format_exc()))


class _Report(TrainerCallback):
    """Sends a run's progress to the parent, as a part of the whole run."""

    def __init__(self, name: str, num_tasks: int, events: Any) -> None:
        self.name, self.num_tasks, self.events = name, num_tasks, events
        self.done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 10 == 0 or state.global_step == state.max_steps:
            part = (self.done + state.global_step / state.max_steps) / self.num_tasks
            self.events.put(("part", self.name, min(part, 1.0)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1


@contextmanager
def _board(names: list[str], quiet: bool) -> Iterator[Any]:
    """Shows how far the runs are: bars on a terminal, a line now and then elsewhere."""
    if quiet:
        yield lambda _kind, _name, _value: None
        return
    if wants_bar("auto"):
        columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console()) as progress:
            bars = {name: progress.add_task(name, total=100, start=False) for name in names}

            def bar(_kind: str, name: str, value: float) -> None:
                progress.start_task(bars[name])
                progress.update(bars[name], completed=round(100 * value))

            yield bar
        return
    parts = dict.fromkeys(names, 0.0)
    started, last = time.perf_counter(), [0.0]

    def line(_kind: str, name: str, value: float) -> None:
        parts[name] = value
        now = time.perf_counter() - started
        if now - last[0] >= _LINE_SECONDS:
            last[0] = now
            whole = sum(parts.values()) / len(parts)
            left = now / whole - now if whole else 0.0
            text = " ".join(f"{key} {100 * part:.0f}%" for key, part in parts.items())
            console().print(f"{now:.0f} s: {text}; about {left:.0f} s left", soft_wrap=True)

    yield line


def _collect(names: list[str], output: Path) -> tuple[dict[str, dict[str, Any]], dict[str, ScoreMatrix]]:
    results, matrices = {}, {}
    for name in names:
        content = json.loads((output / "runs" / name / "scores.json").read_text(encoding="utf-8"))
        matrix = ScoreMatrix.from_json(content, name)
        matrices[name] = matrix
        results[name] = {
            "op": matrix.op,
            "bwt": matrix.bwt,
            "base": matrix.base_kept,
            "seconds": content["seconds"],
            "memory_bytes": content["memory_bytes"],
        }
    return results, matrices

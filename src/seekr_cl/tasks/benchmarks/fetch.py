"""Turning a published archive into task folders that a stream can name."""

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError, DataError, OutputError, nearest
from seekr_cl.system.locks import hold
from seekr_cl.system.mounts import refuse_mount
from seekr_cl.system.paths import at_home
from seekr_cl.system.removal import give_away, make_folder, remove_made, remove_unfinished, unfinished_folder
from seekr_cl.tasks.benchmarks.archives import open_files
from seekr_cl.tasks.benchmarks.checksums import MANIFEST, Manifest
from seekr_cl.tasks.benchmarks.download import downloaded, file_sha256, is_url
from seekr_cl.tasks.benchmarks.layouts import MissingTaskError, Rows, read_task
from seekr_cl.tasks.benchmarks.protocols import Benchmark

Progress = Callable[[str, int, int | None], None]
"""Called with what is done, how far, and how far there is to go if that is known."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was written.

    Attributes:
        folder: where.
        rows: ``{task: {split: rows}}``.
        notes: what is not as published.
    """

    folder: Path
    rows: dict[str, dict[str, int]]
    notes: list[str]


def fetch(
    benchmark: Benchmark,
    source: str,
    output: Path,
    *,
    variant: str | None = None,
    tasks: Sequence[str] | None = None,
    partial: bool = False,
    sha256: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Fetched:
    """Write ``<task>/{train,eval,test}.json`` and ``benchmark.json`` with rows and checksums.

    Args:
        benchmark: which.
        source: a folder, a zip or tar, or the URL of one.
        output: the new folder; nothing is there unless all of it is.
        variant: the edition of the data.
        tasks: only these; all by default.
        partial: take a source that lacks tasks or rows, and note what it lacks.
        sha256: what the archive's hash must be.
        progress: called after each task and piece of a download.

    Returns:
        What was written.

    Raises:
        ConfigError: for an unknown variant or task.
        DataError: if the source cannot be used, or is not complete and ``partial`` is off.
        OutputError: if ``output`` holds something or cannot be written.
    """
    wanted = _tasks(benchmark, tasks)
    if benchmark.variants:
        variant = benchmark.default_variant if variant is None else variant.casefold()
    if (variant is None) != (not benchmark.variants) or (variant and variant not in benchmark.variants):
        known = ", ".join(benchmark.variants) or "none"
        raise ConfigError(f"--variant: {benchmark.name} has no variant {variant!r} (known: {known})")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise OutputError(f"{output}: already holds something; choose another --output")
    with hold(output, "benchmark"):
        remove_unfinished(output)
        content = _fetched(benchmark, source, output, variant, wanted, partial, sha256, progress)
    manifest = Manifest.read(output)
    assert manifest is not None
    return Fetched(output, content["rows"], content["notes"])


def _fetched(
    benchmark: Benchmark,
    source: str,
    output: Path,
    variant: str | None,
    wanted: list[str],
    partial: bool,
    sha256: str | None,
    progress: Progress,
) -> dict[str, Any]:
    if is_url(source):
        with downloaded(source, lambda done, total: progress("download", done, total)) as path:
            return _convert(benchmark, path, output, variant, wanted, partial, sha256, progress, source)
    return _convert(benchmark, at_home(source), output, variant, wanted, partial, sha256, progress)


def _tasks(benchmark: Benchmark, asked: Sequence[str] | None) -> list[str]:
    for task in asked or ():
        if task not in benchmark.tasks:
            raise ConfigError(f"--tasks: {benchmark.name} has no task {task!r}{nearest(task, benchmark.tasks)}")
    return [task for task in benchmark.tasks if asked is None or task in asked]


def _convert(
    benchmark: Benchmark,
    path: Path,
    output: Path,
    variant: str | None,
    tasks: list[str],
    partial: bool,
    sha256: str | None,
    progress: Progress,
    called: str | None = None,
) -> dict[str, Any]:
    found = file_sha256(path) if path.is_file() else None
    if sha256 is not None and (found is None or found != sha256.casefold()):
        raise DataError(f"{called or path}: its sha256 is {found or 'none, it is a folder'}, not {sha256}; refused")
    content: dict[str, Any] = {"name": benchmark.name, "variant": variant, "source": called or path.name}
    content |= {"sha256": found, "rows": {}, "files": {}, "notes": []}
    refuse_mount(output)
    place = unfinished_folder(output)
    try:
        make_folder(place)
        with open_files(path) as files:
            missing: list[DataError] = []
            for number, task in enumerate(tasks, 1):
                progress(task, number, len(tasks))
                try:
                    rows = read_task(files, benchmark, task, variant)
                except MissingTaskError as error:
                    missing.append(error)
                    content["notes"].append(f"{task}: not in the source")
                    continue
                content["notes"] += _count(benchmark, task, variant, rows, partial)
                _write(place, task, rows, content)
        if not partial:
            _complete(benchmark, content["rows"], tasks, missing)
        if not content["rows"]:
            raise DataError(f"{called or path}: holds none of the tasks of {benchmark.name}")
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (place / MANIFEST).write_text(text, encoding="utf-8")
        # An empty folder that is there gives way to it, one that is not stays.
        os.replace(place, output)
        give_away(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        remove_made(place)
    return content


def _complete(benchmark: Benchmark, there: Collection[str], asked: list[str], missing: list[DataError]) -> None:
    """Refuses a source from which neither all asked for nor all of any order can be had."""
    orders = benchmark.orders.values() if len(asked) == len(benchmark.tasks) else ()
    if missing and not any(set(order) <= set(there) for order in orders):
        raise DataError(f"{missing[0]}; --partial takes what is there")


def _count(benchmark: Benchmark, task: str, variant: str | None, rows: Rows, partial: bool) -> list[str]:
    expected = benchmark.train_rows.get(variant or "")
    found = len(rows.splits["train"])
    if expected is None or found == expected:
        return rows.notes
    if not partial:
        raise DataError(
            f"{benchmark.name} {variant}: task {task} has {found} training rows and not {expected}; "
            "give the official archive, or --partial if that is what you have"
        )
    return [*rows.notes, f"{task}: {found} training rows, not {expected}"]


def _write(place: Path, task: str, rows: Rows, content: dict[str, Any]) -> None:
    folder = place / task
    folder.mkdir(parents=True, exist_ok=True)
    content["rows"][task] = {}
    for split, given in rows.splits.items():
        if not given:
            continue
        content["rows"][task][split] = len(given)
        written = {f"{split}.json": [{"prompt": row["prompt"], "answer": row["answer"]} for row in given]}
        if any("references" in row for row in given):
            written[f"{split}_references.json"] = [row.get("references", [row["answer"]]) for row in given]
        for name, value in written.items():
            path = folder / name
            path.write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
            content["files"][f"{task}/{name}"] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

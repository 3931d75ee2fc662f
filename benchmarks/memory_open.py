"""Opening a large replay memory and reading samples from it: time, and by how much RAM grows.

    python benchmarks/memory_open.py --samples 100000 --output benchmarks/results/memory_open.md

Samples are made without a model: 96 tokens, teacher logits of 16 answer positions (64 tokens each), rows of 8 heads at
24 queries (16 entries each). Each measurement runs in a process of its own that has imported everything and opened a
memory of two samples before, so that what is measured is the large memory alone.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seekr_cl.attention.stored import StoredTopK
from seekr_cl.memory import AttentionSignal, LogitSignal, MemoryTask, ReplayMemory, ReplaySample

TOKENS, POSITIONS, ENTRIES, HEADS, QUERIES, KEPT = 96, 16, 64, 8, 24, 16
READS = 1000


class Made(Sequence[ReplaySample]):
    """Samples that differ, made when they are asked for, so that making them needs no RAM either."""

    def __init__(self, count: int) -> None:
        self.count = count
        rows = torch.rand(HEADS, QUERIES, TOKENS).pow(4)
        position_A = torch.arange(TOKENS - POSITIONS, TOKENS)
        logits = LogitSignal.encode(position_A, 4 * torch.randn(POSITIONS, 32_000), ENTRIES, "int8")
        attention = AttentionSignal(
            torch.arange(QUERIES), StoredTopK.encode(rows / rows.sum(-1, keepdim=True), KEPT, "int8")
        )
        signals = {"logits": logits, "attention": attention}
        self.sample = ReplaySample("", "", torch.arange(TOKENS), TOKENS - POSITIONS, signals)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if index >= self.count:
            raise IndexError
        ids_L = (torch.arange(TOKENS) + index) % 32_000
        texts = {"prompt": f"What is known of number {index}? " * 5, "completion": f"It is number {index}. " * 3}
        return dataclasses.replace(self.sample, ids_L=ids_L, **texts)


def make(folder: Path, count: int, tasks: int) -> None:
    """A memory of ``count`` samples in ``tasks`` generations."""
    torch.manual_seed(0)
    memory = ReplayMemory.open(folder, create=True)
    for number in range(tasks):
        samples = Made(count // tasks)
        task = MemoryTask(f"task-{number}", samples, {0: list(range(HEADS))}, {"examples": count})
        memory.commit(
            [task], importance=None, model_sha256="m", tokenizer_sha256="t", method={"name": "seekr", "preset": "-"}
        )


def resident() -> int:
    """Bytes of RAM this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path, small: Path) -> dict[str, float]:
    """Seconds and bytes of RAM of opening, of random reads, and of reading everything once."""
    warm = ReplayMemory.open(small)
    list(warm.samples)
    before, started = resident(), time.perf_counter()
    memory = ReplayMemory.open(folder)
    opened, after = time.perf_counter() - started, resident()
    places = random.Random(0).sample(range(len(memory.samples)), READS)
    samples, started = memory.samples, time.perf_counter()
    for place in places:
        _ = samples[place]
    read, after_reads = time.perf_counter() - started, resident()
    started = time.perf_counter()
    ReplayMemory.open(folder, verify=True)
    verified = time.perf_counter() - started
    return {
        "open_s": opened, "open_bytes": after - before, "reads_s": read, "reads_bytes": after_reads - after,
        "verify_s": verified, "size": memory.num_bytes, "samples": len(memory.samples),
    }  # fmt: skip


def drop_cache(folder: Path) -> None:
    """Makes the files come from the disk again."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--output", help="a page for the numbers")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(measure(*map(Path, given.measure))))
        return
    where = Path(tempfile.mkdtemp(prefix="seekr-memory-"))
    rows = []
    try:
        make(where / "small", 2, 1)
        for count in (given.samples // 10, given.samples):
            started = time.perf_counter()
            make(where / str(count), count, given.tasks)
            made = time.perf_counter() - started
            for state in ("from disk", "cached"):
                if state == "from disk":
                    drop_cache(where / str(count))
                command = [sys.executable, __file__, "--measure", str(where / str(count)), str(where / "small")]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                rows.append((count, state, made, found))
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(where)
    if given.output:
        Path(given.output).write_text(page(rows, given), encoding="utf-8")


def page(rows: list[tuple[int, str, float, dict[str, float]]], given: argparse.Namespace) -> str:
    """The results as a page."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    lines = [
        "# Opening a large memory\n",
        f"`python benchmarks/memory_open.py --samples {given.samples} --tasks {given.tasks}`, "
        f"{cpu[0] if cpu else platform.machine()}, {os.cpu_count()} cores, one thread, "
        f"Python {platform.python_version()}, torch {torch.__version__}.\n",
        f"A sample: {TOKENS} tokens, {POSITIONS} answer positions of {ENTRIES} tokens, rows of {HEADS} heads at "
        f"{QUERIES} queries of {KEPT} entries. RAM is what the process grows by, mapped pages included; the system "
        f'takes those back when it needs them. "From disk": the files\' pages were dropped from the cache before.\n',
        f"| samples | GB | files | open, ms | RAM at open, MB | {READS} random reads, ms | RAM of these, MB | "
        "open with verify, s | made and committed, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count, state, made, f in rows:
        lines.append(
            f"| {count:,} | {f['size'] / 1e9:.2f} | {state} | {1e3 * f['open_s']:.1f} | {f['open_bytes'] / 1e6:.1f} | "
            f"{1e3 * f['reads_s']:.0f} | {f['reads_bytes'] / 1e6:.1f} | {f['verify_s']:.1f} | {made:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

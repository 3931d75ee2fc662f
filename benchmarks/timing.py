"""Timing and memory of variants side by side: alternated runs in one process, peak memory in a process of its own."""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers


def alternate(variants: dict[str, Callable[[], Any]], runs: int, warm: bool = True) -> dict[str, list[float]]:
    """CPU seconds of each variant, run in turn, after one warm-up of each unless ``warm`` is off.

    Which one goes first rotates from round to round.
    """
    for variant in variants.values() if warm else ():
        variant()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for round_number in range(runs):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            started = time.process_time()
            variants[name]()
            seconds[name].append(time.process_time() - started)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the rounds' own ratios: the machine's drift is the same on both sides of each."""
    return statistics.median(a / b for a, b in zip(over, under))


def spread(over: list[float], under: list[float]) -> str:
    """Lowest to highest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(over, under)]
    return f"{min(ratios):.3f} to {max(ratios):.3f}"


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes by which ``work`` raises this process's memory at its highest, over what is resident before it."""
    work()
    gc.collect()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def in_own_process(script: str, *arguments: str, threads: int) -> Any:
    """Runs a script that prints one JSON value as its last line.

    glibc keeps freed memory of varying size; with every large block mapped by itself, peaks are what was asked for.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> str:
    """One line about where the numbers come from."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown CPU")
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )

"""Two real processes that train together, started once for many cases: gloo on the CPU, no launcher between.

Each reads requests from stdin, JSON lines with a ``folder``, ``words`` (arguments of the tasks) and ``settings``,
teaches two tasks, and answers with a JSON line. A ``fault`` kills the process of that ``rank``; ``base_of`` gives a
process a base model of its own. They have a zygote each, and hashes with different seeds: what depends on the order of
a set comes apart.
"""

import json
import os
import select
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zygote
from deep import compile_nothing
from tinylm import config_for, logits_in_chunks, teach, two_tasks

from seekr_cl.memory import ReplayMemory
from seekr_cl.system import fault_points as faults
from seekr_cl.training import learn

PATIENCE = 600
"""Seconds until a process that waits for the other is taken for lost; a busy machine alone never takes that long."""


def learn_two(base: Path, folder: Path, words: dict[str, Any], settings: dict[str, Any], resume: bool = False) -> None:
    """Two tasks one after the other, with a config made of ``settings``; those already learned are not repeated."""
    settings = dict(settings)
    chunk = settings.pop("chunk", None)
    tasks = two_tasks(**words)
    config = config_for(settings.pop("method"), folder, **settings)
    if not resume:
        with logits_in_chunks(chunk):
            teach(base, folder, tasks, config)
        return
    source, memory = base, folder / "memory"
    for number, task in enumerate(tasks, start=1):
        output = folder / f"m{number}"
        done = (memory / "manifest.json").exists() and ReplayMemory.open(memory).generation >= number
        if not done or output.with_name(f"{output.name}.checkpoints").exists():
            learn(source, task, memory, output, config, resume=True)
        source = output


class Pair:
    """Both processes.

    Args:
        processes: as they were started.
    """

    def __init__(self, processes: list[Any]) -> None:
        self.processes = processes

    def ask(
        self,
        base: Path,
        folder: Path,
        words: dict[str, Any],
        settings: dict[str, Any],
        patience: float = PATIENCE,
        **more: Any,
    ) -> list[str]:
        """One case; what went wrong in each process, or nothing."""
        request = {"base": str(base), "folder": str(folder), "words": words, "settings": settings} | more
        for process in self.processes:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        return [json.loads(self._answer(process, patience)) for process in self.processes]

    def _answer(self, process: Any, patience: float) -> str:
        ready, _, _ = select.select([process.stdout], [], [], patience)
        return (process.stdout.readline() if ready else "") or '"no answer"'


@contextmanager
def pair(
    count: int = 2, setting: dict[str, str] | None = None, first_seed: int = 1, **environment: str
) -> Iterator[Pair]:
    """Starts both, or another number of them, as long as the block lasts.

    Args:
        count: of processes.
        setting: what their zygotes are started with.
        first_seed: of the first one's hashes, 1 or 2; the next has the other.
        environment: of all of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        zygote.start(
            "pair:serve",
            stdin=zygote.PIPE,
            stdout=zygote.PIPE,
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment,
            setting=(setting or {}) | {"PYTHONHASHSEED": str((first_seed + rank - 1) % 2 + 1)},
        )
        for rank in range(count)
    ]
    try:
        yield Pair(processes)
    finally:
        for process in processes:
            process.close()


def serve() -> int:
    """One of them, until its stdin is closed."""
    answers = os.dup(1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        compile_nothing()
    while line := sys.stdin.readline():
        request = json.loads(line)
        os.environ["SEEKR_FAULT"] = request.get("fault", "") if request.get("rank") == int(os.environ["RANK"]) else ""
        faults.passed.clear()
        failure = ""
        try:
            place = Path(request["folder"])
            base = request.get("base_of", {}).get(os.environ["RANK"], request["base"])
            learn_two(Path(base), place, request["words"], request["settings"], request.get("resume", False))
        except BaseException:
            failure = traceback.format_exc()
        os.write(answers, (json.dumps(failure) + "\n").encode())
    return 0

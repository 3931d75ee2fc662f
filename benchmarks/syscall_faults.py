"""Fails single system calls of commands and runs them again: every one must end well, and with the same bits.

    python benchmarks/syscall_faults.py --points 200 --output benchmarks/results/syscall_faults.md

A first pass of each case counts its calls (open, write, fsync, rename, unlink, rmdir, mkdir, chmod; for EIO also
opening a file to read it) on paths in its folder. Then points are drawn: a case, an error (ENOSPC, EDQUOT, EIO), once
or for good, a call. Each must give exit code 0 or 2, at most one line ``error: PATH: ...`` and no traceback;
the same command with ``--resume`` must then succeed, and what is on disk must be that of the command of which nothing
failed: weights, memory, scores, predictions, no file more or less. The exit code is 1 if any point failed.
"""

import argparse
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from faulty import ERRORS, Fault, Faulty, faulty

CASES = {"run": 6, "learn": 6, "gc": 1, "rollback": 1, "export": 1}
"""How often each is drawn, relative to the others."""


def draw_points(server: Faulty, count: int, seed: int, cases: dict[str, int]) -> tuple[dict, list[tuple[str, Fault]]]:
    """How many calls each case has by error, and the points."""
    draw = random.Random(seed)
    calls = {(case, name): server.calls(case, name) for case in cases for name in ERRORS}
    points = []
    for _ in range(count):
        (case,) = draw.choices(list(cases), list(cases.values()))
        name, for_good = draw.choice(list(ERRORS)), draw.random() < 0.5
        # A kind of call first: writes are many and alike.
        kinds = sorted({call.split(" ", 1)[0] for call in calls[case, name]})
        kind = draw.choice(kinds)
        numbers = [number for number, call in enumerate(calls[case, name], 1) if call.startswith(f"{kind} ")]
        points.append((case, Fault(draw.choice(numbers), name, for_good)))
    return calls, points


def report(calls: dict, points: list[tuple[str, Fault]], failed: list[str], seconds: float, command: str) -> str:
    """The results as Markdown."""
    lines = ["# System calls that fail", "", f"`{command}`, {platform.processor() or platform.machine()}, "]
    lines[-1] += f"Python {platform.python_version()}, {platform.platform()}; {seconds:.0f} s."
    lines += ["", "| case | error | calls counted | points, once | points, for good |", "|---|---|---|---|---|"]
    met = Counter((case, fault.name, fault.for_good) for case, fault in points)
    for case, name in calls:
        lines.append(
            f"| {case} | {name} | {len(calls[case, name])} | {met[case, name, False]} | {met[case, name, True]} |"
        )
    kinds: Counter[str] = Counter(calls[case, fault.name][fault.number - 1].split(" ", 1)[0] for case, fault in points)
    lines += ["", "Calls met: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) + "."]
    lines += ["", f"**{len(points)} points, {len(points) - len({one.split(': ')[0] for one in failed})} ended well.**"]
    return "\n".join([*lines, *(f"- {one}" for one in failed)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--output")
    given = parser.parse_args()
    cases = CASES if given.case is None else {given.case: 1}
    started, failed = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as place, faulty(Path(place).resolve()) as server:
        calls, points = draw_points(server, given.points, given.seed, cases)
        print({f"{case} {name}": len(found) for (case, name), found in calls.items()}, flush=True)
        for number, (case, fault) in enumerate(points, 1):
            wrong = server.attempt(case, fault)
            failed += wrong
            for one in wrong or ([f"{number} points"] if number % 20 == 0 else []):
                print(one, flush=True)
        command = f"python benchmarks/syscall_faults.py --points {given.points} --seed {given.seed}"
        text = report(calls, points, failed, time.perf_counter() - started, command)
    print(text.splitlines()[-1 - len(failed)])
    if given.output:
        Path(given.output).write_text(text, encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

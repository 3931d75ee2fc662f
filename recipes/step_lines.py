"""Counts the library's code that runs in one replay step: ``python recipes/step_lines.py [METHOD ...]``.

The tests' tiny model learns two tasks; in the second, a profiler hook notes which functions of ``seekr_cl`` run while a
replay batch is built and while its step is made, from the forward pass until the optimizer has moved the weights. A
file counts if one of its functions has run, a line if it lies in such a function, docstrings included. This is what a
newcomer has to read to follow a kept sample to its loss.

``--measured`` adds what runs on one batch of ``measure_every``, where each loss term's gradient is measured.
"""

import argparse
import ast
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "seekr_cl"
METHODS = ("seekr", "derpp", "replay")


class Count(NamedTuple):
    """How much code ran."""

    files: int
    functions: int
    lines: int


class Step:
    """Collects the code objects that run in replay steps.

    Attributes:
        ran: the code of each function that ran.
        steps: how many replay steps there were.
    """

    def __init__(self) -> None:
        from seekr_cl.replay.batches import ScheduledBatches
        from seekr_cl.training.trainer import SeekrTrainer, TellAfterStep

        self.ran: set[CodeType] = set()
        self.steps = 0
        self._fetch = ScheduledBatches.__getitem__.__code__
        self._begin = SeekrTrainer.training_step.__code__
        self._end = TellAfterStep.on_optimizer_step.__code__
        self._fetching: FrameType | None = None
        self._stepping = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """The hook for ``sys.setprofile``."""
        code = frame.f_code
        if event == "call" and code is self._fetch:
            batches = frame.f_locals["self"]
            self._fetching = frame if batches.schedule[frame.f_locals["index"]].replay else None
        elif event == "call" and code is self._begin and "replay" in frame.f_locals["inputs"]:
            self._stepping = True
            self.steps += 1
        if event == "call" and (self._fetching or self._stepping) and code.co_filename.startswith(str(PACKAGE)):
            self.ran.add(code)
        if event == "return" and frame is self._fetching:
            self._fetching = None
        elif event == "return" and code is self._end:
            self._stepping = False


@contextmanager
def watched() -> Iterator[Step]:
    """Collects while the block runs."""
    step = Step()
    sys.setprofile(step)
    try:
        yield step
    finally:
        sys.setprofile(None)


@cache
def _functions(path: str) -> dict[tuple[str, int], range]:
    """The lines of each function of a file by its name and first line, decorators included."""
    found = {}
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found[node.name, first] = range(first, (node.end_lineno or first) + 1)
    return found


def functions_of(ran: set[CodeType]) -> dict[tuple[str, str, int], range]:
    """``{(file, name, first line): its lines}``; lambdas and comprehensions belong to the function around them."""
    found = {}
    for code in ran:
        lines = _functions(code.co_filename).get((code.co_name, code.co_firstlineno))
        if lines is not None:
            found[str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname, lines.start] = lines
    return found


def count(ran: set[CodeType]) -> Count:
    """Files, functions and lines; a line of a function within another counts once."""
    functions = functions_of(ran)
    lines = {(file, line) for (file, _, _), span in functions.items() for line in span}
    return Count(len({file for file, _, _ in functions}), len(functions), len(lines))


def replay_step(method: str, folder: Path, measured: bool = False) -> set[CodeType]:
    """What runs in a replay step of one method with its default settings.

    Args:
        method: its name.
        folder: an empty one.
        measured: whether gradient norms are measured in some of the steps; only then can SEEKR's lambda2 be "auto".
    """
    from tinylm import config_for, save_base, teach, two_tasks

    fixed = {"lambda2": 20.0} if method == "seekr" and not measured else {}
    config = config_for({"name": method} | fixed, folder, **({} if measured else {"measure_every": 0}))
    with watched() as step:
        teach(save_base(folder / "base"), folder, two_tasks(8), config)
    if not step.steps:
        raise RuntimeError(f"{method}: no replay step was made")
    return step.ran


def main() -> int:
    """Prints a line for each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--measured", action="store_true", help="with the measuring of gradient norms")
    parser.add_argument("--list", action="store_true", help="also each function with its lines")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'method':<8} {'files':>5} {'functions':>9} {'lines':>5}")
    for method in asked.methods or METHODS:
        with tempfile.TemporaryDirectory() as folder:
            ran = replay_step(method, Path(folder), asked.measured)
        files, functions, lines = count(ran)
        print(f"{method:<8} {files:>5} {functions:>9} {lines:>5}")
        if asked.list:
            for (file, name, first), span in sorted(functions_of(ran).items()):
                print(f"  {file}:{first} {name} ({len(span)})")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]
    sys.exit(main())

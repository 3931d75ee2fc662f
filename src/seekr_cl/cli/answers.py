"""``--json`` and ``--quiet`` of commands that print as they go: their answer in one piece, or none of it."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


def take_answers(parser: argparse.ArgumentParser, quiet: bool = True) -> None:
    """Adds the options.

    Args:
        parser: of a command that leaves its answer in ``given.answer``.
        quiet: whether it works long enough to be asked for silence.
    """
    parser.add_argument("--json", action="store_true", help="print the result for a program, and nothing else")
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    parser.set_defaults(answers=True)


@contextmanager
def answering(given: Any) -> Iterator[None]:
    """What the command prints is left out where its answer is asked for in one piece, or not at all."""
    as_json, quiet = getattr(given, "json", False), getattr(given, "quiet", False)
    if not getattr(given, "answers", False) or not (as_json or quiet):
        yield
        return
    if quiet and hasattr(given, "overrides") and given.command in ("learn", "run"):
        given.overrides = [*given.overrides, "progress=none"]
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield
    if as_json and hasattr(given, "answer"):
        print(json.dumps(given.answer, indent=2, ensure_ascii=False))

"""``seekr completion``: what makes a shell complete commands, options and files."""

import argparse
from typing import Any

import shtab

from seekr_cl.cli.method_names import METHOD_NAMES

FOLDERS = {"memory", "output", "base", "general", "folder"}
FILES = {
    "model",
    "task",
    "data",
    "test",
    "config",
    "file",
    "stream",
    "launch",
    "source",
    "predictions",
    "runs",
    "everywhere",
}
"""Options and arguments that name folders, or files and folders."""


def completion(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
        parser: that of the whole command; its options learn what they complete to.
    """
    _prepare(parser)
    return shtab.complete(parser, shell)


def _prepare(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _prepare(inner)
        elif action.dest == "method":
            action.choices = METHOD_NAMES
        elif action.choices is None and action.nargs != 0:
            _complete(action)


def _complete(action: Any) -> None:
    if action.dest in FOLDERS:
        action.complete = shtab.DIRECTORY
    elif action.dest in FILES:
        action.complete = shtab.FILE

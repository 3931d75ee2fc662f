"""``--launch``: the same command once for every process that an accelerate config asks for."""

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from seekr_cl.distributed import collectives
from seekr_cl.errors import ConfigError
from seekr_cl.system.yaml_file import read_yaml

_ALONE = ("NO", "MULTI_CPU")
"""Kinds of config for which accelerate starts a single process, unless MPI does it."""

_GO_ON = "what it had saved is there, continue with --resume"
_PATIENCE = 600
"""Seconds from a signal, or from the failure of one process, until torch kills those that are still there. Its own 30
would do it in the middle of a long step, or while the state is saved."""


def launch(config: str, words: Sequence[str]) -> int:
    """Starts the processes with accelerate's own launcher and waits for them.

    Args:
        config: what ``accelerate config`` wrote.
        words: the command's words without ``--launch``.

    Returns:
        the exit code of the first process that failed, or 0.

    Raises:
        ConfigError: if the file is none, or would start one process although it says more.
    """
    content = read_yaml(Path(config), "compute_environment")
    processes = content.get("num_processes", 1)
    if type(processes) is not int or processes < 1:
        raise ConfigError(f"{config}: num_processes: '{processes}' must be a whole number of at least 1")
    if processes != 1 and content.get("distributed_type") in _ALONE and not content.get("mpirun_config"):
        raise ConfigError(
            f"{config}: accelerate starts one process for distributed_type: {content['distributed_type']} and not "
            f"{processes}; on CPUs without MPI write 'distributed_type: MULTI_GPU' and 'use_cpu: true'"
        )
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # It would repeat on a page what the process itself says in one line; its loggers come with its modules.
    import_module("torch.distributed.launcher.api")
    _silence("torch.distributed.elastic")
    os.environ[collectives.LAUNCHER] = "1"
    if content.get("use_cpu") is True:
        # With DeepSpeed accelerate does not pass it on, and DeepSpeed looks for a GPU by itself.
        os.environ |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_PATIENCE))
    try:
        given: argparse.Namespace = launch_command_parser().parse_args(
            ["--config_file", config, "-m", "seekr_cl", *words]
        )
        launch_command(given)
    except ChildFailedError as failed:
        process, failure = failed.get_first_failure()
        # Neither had a chance to say so itself.
        if failure.exitcode < 0:
            print(f"error: process {process} was ended by {_signal(-failure.exitcode)}; {_GO_ON}", file=sys.stderr)
        elif failure.exitcode == collectives.LOST:
            print(f"error: process {process} cannot reach the others any more; {_GO_ON}", file=sys.stderr)
        return _exit_code(failure.exitcode)
    except subprocess.CalledProcessError as failed:
        return _exit_code(failed.returncode)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{config}: accelerate cannot launch with it ({error})") from error
    return 0


def without_launch(words: Sequence[str]) -> list[str]:
    """The words of a command line that are not about launching."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--launch="):
            skip = False
        elif word == "--launch":
            skip = True
        else:
            kept.append(word)
    return kept


def _silence(name: str) -> None:
    """Of all loggers below, since torch has given some a level of their own."""
    for each in [name, *logging.root.manager.loggerDict]:
        if each.startswith(name):
            logging.getLogger(each).setLevel(logging.CRITICAL)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _exit_code(code: Any) -> int:
    return 128 - int(code) if int(code) < 0 else int(code)

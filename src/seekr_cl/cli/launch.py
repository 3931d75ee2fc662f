"""``--launch``: the same command once for every process that an accelerate config asks for."""

import argparse
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seekr_cl.errors import ConfigError
from seekr_cl.tasks.yaml_file import read_yaml

_ALONE = ("NO", "MULTI_CPU")
"""Kinds of config for which accelerate starts a single process, unless MPI does it."""


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
    content = read_yaml(Path(config))
    processes = content.get("num_processes", 1)
    if processes != 1 and content.get("distributed_type") in _ALONE and not content.get("mpirun_config"):
        raise ConfigError(
            f"{config}: accelerate starts one process for distributed_type: {content['distributed_type']} and not "
            f"{processes}; on CPUs without MPI write 'distributed_type: MULTI_GPU' and 'use_cpu: true'"
        )
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # It would repeat on a page what the process itself says in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        given: argparse.Namespace = launch_command_parser().parse_args(
            ["--config_file", config, "-m", "seekr_cl", *words]
        )
        launch_command(given)
    except ChildFailedError as failed:
        return _exit_code(failed.get_first_failure()[1].exitcode)
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


def _exit_code(code: Any) -> int:
    return 128 - int(code) if int(code) < 0 else int(code)

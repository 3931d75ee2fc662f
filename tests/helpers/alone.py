"""Two processes of one group of which only one goes wrong, while the other is busy elsewhere."""

import os
import sys
from pathlib import Path

import torch.distributed as dist
from tinylm import config_for, reverse_task

from seekr_cl.models.source import ModelSource
from seekr_cl.system.run_record import beside
from seekr_cl.training.checkpoint import Checkpoints
from seekr_cl.training.following import followed


def fail(folder: str, failing: int) -> int:
    """The process ``failing`` fails and says what is left of the record; the other waits for its stdin to close."""
    dist.init_process_group("gloo")
    output = Path(folder) / "m1"
    if dist.get_rank() != failing:
        sys.stdin.read()
        return 0
    config, saves = config_for("replay", Path(folder)), Checkpoints(Path(folder) / "m1.checkpoints")
    words = ModelSource("base"), [reverse_task()], Path(folder) / "memory", output, config, saves
    try:
        with followed(None, *words) as own:
            own.write_to(beside(output))
            raise RuntimeError("alone")
    except RuntimeError as error:
        os.write(1, f"{error} {beside(output).exists()}\n".encode())
    return 0

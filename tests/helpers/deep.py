"""Where DeepSpeed is: in a folder of its own (`make test` installs it there).

Where it is importable, transformers and accelerate import it in every process, which costs seconds each time.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import zygote

FOLDER = Path(os.environ.get("SEEKR_DEEPSPEED", f"{sys.prefix}/deepspeed"))
needs_deepspeed = pytest.mark.skipif(
    not (FOLDER / "deepspeed").is_dir() and importlib.util.find_spec("deepspeed") is None,
    reason=f"deepspeed is not installed, neither in {FOLDER} nor for this Python",
)


def with_deepspeed(*first: Path) -> str:
    """A PYTHONPATH on which DeepSpeed lies, behind these folders and what is there already."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")]), str(FOLDER)])


SETTING = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PYTHONPATH": with_deepspeed()}
"""Of a zygote whose children have it; see ``zygote.start``."""


def compile_nothing() -> None:
    """DeepSpeed would compile an operator for sums over shared memory, for a minute on two CPUs."""
    import deepspeed.ops

    # It would wait for ever, too, for a killed process's lock on it.
    deepspeed.ops.__compatible_ops__ = {}


def command(words: list[str]) -> int:
    """``seekr`` with these words, in a child of such a zygote."""
    compile_nothing()
    return zygote.command(words)

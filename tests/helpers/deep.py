"""Where DeepSpeed is: in a folder of its own (`make test` installs it there).

Where it is importable, transformers and accelerate import it in every process, which costs seconds each time.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("SEEKR_DEEPSPEED", f"{sys.prefix}/deepspeed"))
needs_deepspeed = pytest.mark.skipif(
    not (FOLDER / "deepspeed").is_dir() and importlib.util.find_spec("deepspeed") is None,
    reason=f"deepspeed is not installed, neither in {FOLDER} nor for this Python",
)


def with_deepspeed(*first: Path) -> str:
    """A PYTHONPATH on which DeepSpeed lies, behind these folders and what is there already."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")]), str(FOLDER)])

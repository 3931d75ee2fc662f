"""``torch_compile`` trains what the eager model trains, in later tasks too, and is traced only so often.

The backend is ``aot_eager``: traced and differentiated ahead of time as for inductor, without its minutes of code
generation.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import assert_same_curves, curves
from tinylm import PLAIN_SGD, assert_same, config_for, differs, logits_in_chunks, memory_tensors, reverse_task, weights
from torch._dynamo.utils import counters

from cases import SEEKR
from seekr_cl.training import learn

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
# Terms are measured in the middle of a task too, each in a backward pass of its own.
COMMON: dict[str, Any] = PLAIN_SGD | {"replay": {"samples": 4, "every": 1}, "measure_every": 2}


def learn_four(base: Path, folder: Path, settings: dict[str, Any]) -> list[int]:
    """Four tasks; how many graphs there were after each."""
    source, graphs = base, []
    for number in range(1, 5):
        task, output = reverse_task(f"task{number}", count=8, seed=number), folder / f"m{number}"
        learn(source, task, folder / "memory", output, config_for(SEEKR, folder, **COMMON, **settings))
        graphs.append(counters["stats"]["unique_graphs"])
        source = output
    return graphs


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_is_eager(bases: dict[str, Path], tmp_path: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    assert learn_four(bases["llama"], tmp_path / "eager", {}) == [0, 0, 0, 0]
    # Of some batches the logits are made in parts, of others at once.
    with logits_in_chunks(18):
        graphs = learn_four(bases["llama"], tmp_path / "compiled", COMPILED)
    assert 0 < graphs[0] < graphs[1], "the second task's replay looks at attention, which is other graphs"
    assert graphs[3] == graphs[2], "a task whose model and lengths are like the former ones' is traced anew"
    assert differs(weights(tmp_path / "compiled/m4"), weights(bases["llama"])), "nothing was learnt"
    assert_same_curves(curves(tmp_path / "eager"), curves(tmp_path / "compiled"))
    assert_same(weights(tmp_path / "eager/m4"), weights(tmp_path / "compiled/m4"), 4e-6)
    assert_same(memory_tensors(tmp_path / "eager/memory"), memory_tensors(tmp_path / "compiled/memory"), 2e-5)

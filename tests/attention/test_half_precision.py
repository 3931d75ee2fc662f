"""In bfloat16 the injected gradient is no further from float32 than that of eager attention maps in bfloat16."""

import contextlib

import pytest
import torch
from test_distil_gradients import distilled, reference, targets
from tiny_models import TABLE, build, make_batch, twin_of


def gradients(model):
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "mistral-window", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16(name, way):
    implementation, batch = "sdpa" if TABLE[name].sdpa else "eager", make_batch("right")
    wanted = targets(batch, TABLE[name].windows, torch.float32)
    exact = build(name, "eager")
    values, _ = reference(exact, batch, wanted, 0.0)
    mine = build(name, implementation)
    theirs = twin_of(mine, name)
    if way == "weights":
        mine, theirs = mine.bfloat16(), theirs.bfloat16()
    with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else contextlib.nullcontext():
        # Autocast turns whatever is multiplied down, the log-rows of the reference are not.
        eager_values, _ = reference(theirs, batch, wanted, 0.0)
        found = distilled(mine, batch, wanted, 0.0)
    goal = gradients(exact)
    # Both are draws of rounding noise; a quarter is what separates two draws here.
    assert error(gradients(mine), goal) <= 1.25 * error(gradients(theirs), goal)
    for layer, value in values.items():
        assert abs(found[layer] - value) <= 1.5 * abs(eager_values[layer] - value) + 1e-2 * value

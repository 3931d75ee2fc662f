"""Liger's kernels under SEEKR's terms, in a process in which Triton interprets."""

import copy

import numpy
import torch
from row_cases import in_layers
from test_distil_gradients import FACTOR, targets
from tiny_models import TABLE, build, make_batch, run

from seekr_cl.attention import AttentionTap, DistillRows
from seekr_cl.methods import LossTerm
from seekr_cl.methods.losses import causal_lm_loss
from seekr_cl.training.gradient_shares import GradientShares

NAME = "llama-gqa"


def pass_floats():
    """The interpreter hands a kernel plain Python floats, which the compiler makes scalars of."""
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter._implicit_cvt

    def convert(value):
        if not isinstance(value, float):
            return plain(value)
        handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = convert


def compare():
    """Largest differences to the model without Liger, relative to the largest gradient, and its one known trap."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    batch = make_batch("left")
    wanted = targets(batch, TABLE[NAME].windows, torch.float32)
    plain = build(NAME, "sdpa")
    found = {"plain": measured(plain, batch, wanted)}
    patched = copy.deepcopy(plain)
    patched.zero_grad()
    # Its norm's backward pass launches a kernel without arguments that the interpreter insists on.
    kernels = {"rope": True, "swiglu": True, "rms_norm": False}
    _apply_liger_kernel_to_instance(model=patched, fused_linear_cross_entropy=False, cross_entropy=False, **kernels)
    found["patched"] = measured(patched, batch, wanted)
    names = [type(module).__name__ for module in patched.modules()]
    found["patched"]["kernels"] = sum(
        name == "LlamaMLP" and "Liger" in repr(m.forward) for name, m in zip(names, patched.modules())
    )
    loss = causal_lm_loss(run(patched, batch).logits, batch["labels"])
    norms = []
    for _ in range(2):
        patched.zero_grad()
        loss.backward(retain_graph=True)
        norms.append(float(patched.model.layers[0].mlp.gate_proj.weight.grad.norm()))
    found["patched"]["twice"] = norms
    return found


def measured(model, batch, wanted):
    """Values, shares and the gradient of a step, terms measured each on a forward pass of its own."""
    with AttentionTap(model) as tap:

        def take():
            tap.action = action = DistillRows(in_layers(wanted))
            task = causal_lm_loss(run(model, batch).logits, batch["labels"])
            rows = sum(FACTOR[layer] * value for layer, value in action.losses().items())
            return {"task": LossTerm(task), "attention": LossTerm(rows, 0.5)}

        shares = GradientShares(1)
        shares.measure(take(), model, list(model.parameters()), take)
        terms = take()
        sum(term.weight * term.value for term in terms.values()).backward()
    return {
        "values": [float(term.value.detach()) for term in terms.values()],
        "shares": shares.shares(),
        "gradients": {name: weight.grad.numpy() for name, weight in model.named_parameters()},
    }

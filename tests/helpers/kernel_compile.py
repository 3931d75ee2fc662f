"""Compiles the kernels for a GPU that need not be here; the interpreter lets things pass that the compiler does not.

Runs in a process of its own, where Triton does not interpret. The launcher is run as it is on a toy call, with
recorders in the kernels' places; the types of what they were called with are what is compiled.
"""

from dataclasses import replace
from functools import partial

import kernel_cases
import torch

SHARED = {80: 163, 89: 99, 90: 227}
"""KiB of shared memory a block may have."""
TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int64": "i64", "int32": "i32", "uint8": "u8"}


class Recorder:
    """Stands for a kernel and keeps what it is called with."""

    def __init__(self, kernel):
        self.kernel, self.arguments = kernel, None

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **kwargs):
        self.arguments = dict(zip(self.kernel.arg_names, args)) | kwargs


def kind(value):
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[str(value.dtype).removeprefix("torch.")]
    return "fp32" if isinstance(value, float) else "i32"


def build(recorder, capability):
    """Shared memory of the compiled kernel, in bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments = recorder.kernel, recorder.arguments
    signature, constants, aligned = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(place,)] = "constexpr", value
            continue
        signature[parameter.name] = kind(value)
        if isinstance(value, torch.Tensor):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared


def compile_case(case, teacher, capability):
    """Compiles all kernels of a call; shared memory in bytes by kernel."""
    from seekr_cl.attention.kernels import blocks, launch

    case = {"size": 128, "dtype": torch.bfloat16, **case}
    names = ("forward_rows", "backward_queries", "sum_queries", "backward_keys")
    recorders = {name: Recorder(getattr(launch, name)) for name in names}
    for name, recorder in recorders.items():
        setattr(launch, name, recorder)
    plain, launch.choose = launch.choose, partial(rule, blocks, capability)
    try:
        call = kernel_cases.make_call(case)
        target = kernel_cases.make_target(case, teacher, call)
        _, state = launch.forward(call, target)
        launch.backward(call, replace(target), state, torch.ones(()))
    finally:
        launch.choose = plain
        for name, recorder in recorders.items():
            setattr(launch, name, recorder.kernel)
    return {name: build(recorder, capability) for name, recorder in recorders.items()}


def rule(blocks, capability, kernel, arguments, q_BHLD):
    ample = SHARED[capability] * 1024 >= blocks.AMPLE
    return blocks.rule(kernel, arguments["DP"], arguments["TEACHER"], q_BHLD.element_size() == 2, ample)

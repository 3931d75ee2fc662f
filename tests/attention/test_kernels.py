"""The kernels against the PyTorch tiles, run by Triton's interpreter, which has to be chosen before Triton is imported.

So the kernels run in one worker process per session of pytest; each test asks it for one comparison.
"""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import kernel_cases
import pytest
import torch

from seekr_cl.attention import DenseRows, RowTarget
from seekr_cl.attention.kernels import available, usable

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it has wheels for linux x86_64 only)"
)
# Of the largest number; what half precision loses is a rounding of each product and one of the result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@pytest.fixture(scope="module")
def interpreter():
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(1, get_context("spawn"), kernel_cases.widen_dots) as pool:
        try:
            pool.submit(os.getpid).result()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
        yield pool


@needs_triton
@pytest.mark.parametrize("teacher", kernel_cases.TEACHERS)
@pytest.mark.parametrize("name", kernel_cases.CASES)
def test_kernels_agree_with_the_tiles(interpreter, name, teacher):
    errors = interpreter.submit(kernel_cases.compare, name, teacher).result()
    tolerance = TOLERANCE[kernel_cases.CASES[name].get("dtype", torch.float32)]
    assert max(errors) <= tolerance, errors


@needs_triton
@pytest.mark.parametrize("check", kernel_cases.CHECKS, ids=lambda check: check.__name__)
def test_edges(interpreter, check):
    interpreter.submit(check).result()


def test_the_processor_goes_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import kernel_cases as c\n"
        "call = c.make_call({})\n"
        "c.run(call, c.make_target({}, 'dense', call))"
    )
    path = os.pathsep.join([os.path.dirname(kernel_cases.__file__), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("teacher", kernel_cases.TEACHERS)
def test_what_the_kernels_do_not_cover_is_left_to_the_tiles(teacher):
    call = kernel_cases.make_call({})
    target = kernel_cases.make_target({}, teacher, call)
    assert available(call, target)
    assert not usable(call, target, 0.0)
    with kernel_cases.route("kernels"):
        assert usable(call, target, 0.0)
        assert not usable(call, target, 1e-8)
        with kernel_cases.route("tiles"):
            assert not usable(call, target, 0.0)
    double = kernel_cases.replace(call, q_BHLD=call.q_BHLD.double(), k_BKLD=call.k_BKLD.double())
    assert not available(double, target)
    assert not available(kernel_cases.replace(call, mask="blocks"), target)
    assert not available(call, RowTarget(target.index, object(), target.weight_PR))
    none = slice(0, 0)
    assert not available(call, target.tile(none))
    assert not available(call, RowTarget(target.index, DenseRows(torch.zeros(1, dtype=torch.int64)), target.weight_PR))

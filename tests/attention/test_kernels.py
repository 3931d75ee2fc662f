"""The kernels against the PyTorch tiles, run by Triton's interpreter, which has to be chosen before Triton is imported.

So the kernels run in one process for all tests of this file; each test asks it for one comparison.
"""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import kernel_cases
import kernel_compile
import pytest
import torch
from asked import INTERPRETED, asked

from seekr_cl.attention import DenseRows, RowTarget
from seekr_cl.attention.kernels import blocks
from seekr_cl.attention.kernels import routing as kernels
from seekr_cl.attention.kernels.routing import available, usable

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it has wheels for linux x86_64 only)"
)
BENCHMARK = str(Path(__file__).parents[2] / "benchmarks" / "row_kl_gpu.py")
# Of the largest number; what half precision loses is a rounding of each product and one of the result.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@pytest.fixture(scope="module")
def interpreter():
    with asked(setting=INTERPRETED) as process:
        process.call(kernel_cases.widen_dots)
        yield process


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    with asked({"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}) as process:
        yield process


@needs_triton
@pytest.mark.parametrize("teacher", kernel_cases.TEACHERS)
@pytest.mark.parametrize("name", kernel_cases.CASES)
def test_kernels_agree_with_the_tiles(interpreter, name, teacher):
    errors = interpreter.call(kernel_cases.compare, name, teacher)
    tolerance = TOLERANCE[kernel_cases.CASES[name].get("dtype", torch.float32)]
    assert max(errors) <= tolerance, errors


@needs_triton
@pytest.mark.parametrize("check", kernel_cases.CHECKS, ids=lambda check: check.__name__)
def test_edges(interpreter, check):
    interpreter.call(check)


@needs_triton
@pytest.mark.parametrize(
    ("teacher", "capability", "case"),
    [
        ("dense", 80, {"segments": True, "window": 6}),
        ("topk", 90, {"sink": True, "softcap": 2.0, "mask": "left"}),
        ("factors", 89, {"mask": "added heads", "dtype": torch.float16}),
    ],
)
def test_kernels_compile_and_fit(compiler, teacher, capability, case):
    shared = compiler.call(kernel_compile.compile_case, case, teacher, capability)
    assert max(shared.values()) <= kernel_compile.SHARED[capability] * 1024, shared


@needs_triton
def test_benchmark_runs_through_the_interpreter(interpreter):
    (line,) = interpreter.call(kernel_cases.run_script, BENCHMARK, "--interpret", "--json").splitlines()
    entries = json.loads(line)["entries"]
    assert len(entries) == 6
    assert all(max(entry["differences"]) < 1e-5 for entry in entries)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmark_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [BENCHMARK])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(BENCHMARK, run_name="__main__")
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def with_path():
    """The environment with this process's way to find modules."""
    path = os.pathsep.join([os.path.dirname(kernel_cases.__file__), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path}


def test_the_processor_goes_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import kernel_cases as c\n"
        "call = c.make_call({})\n"
        "c.run(call, c.make_target({}, 'dense', call))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=with_path())


@needs_triton
def test_devices_that_run_the_kernels(monkeypatch):
    runs, gpu = kernels._runs.__wrapped__, torch.device("cuda:0")
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert runs(gpu)
    assert not runs(torch.device("cpu"))
    monkeypatch.setattr(kernels, "OLDEST_TRITON", (99, 0))
    assert not runs(gpu)
    monkeypatch.undo()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not runs(gpu)


def test_few_rows_make_low_blocks(monkeypatch):
    device = SimpleNamespace(shared_memory_per_block_optin=227 * 1024, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    q_BHLD = SimpleNamespace(device=torch.device("cuda:0"), element_size=lambda: 2)

    def height(kernel, pairs, rows):
        arguments = {"DP": 128, "TEACHER": 0, "query": torch.zeros(pairs, rows)}
        return blocks.choose(kernel, arguments, q_BHLD)["BM"]

    assert [height("forward", 32, rows) for rows in (2048, 100, 5)] == [128, 16, 16]
    assert height("keys", 32, 100) == 64


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
    assert not available(kernel_cases.replace(call, mask=torch.zeros(1, 1, 37, 37, requires_grad=True)), target)
    assert not available(call, RowTarget(target.index, object(), target.weight_PR))
    none = slice(0, 0)
    assert not available(call, target.tile(none))
    assert not available(call, RowTarget(target.index, DenseRows(torch.zeros(1, dtype=torch.int64)), target.weight_PR))

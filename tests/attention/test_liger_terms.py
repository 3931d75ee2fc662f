"""Liger's kernels compose with the attention term; they run in Triton's interpreter, in a process of their own."""

from importlib.util import find_spec

import liger_case
import numpy
import pytest
from asked import INTERPRETED, asked


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed (it needs triton)")
def test_terms_and_gradients_are_those_without_liger():
    with asked(setting=INTERPRETED) as process:
        process.call(liger_case.pass_floats)
        found = process.call(liger_case.compare)
    plain, patched = found["plain"], found["patched"]
    assert patched["kernels"] == 3, "the feed-forward layers were not replaced"
    assert patched["values"] == pytest.approx(plain["values"], rel=1e-5)
    assert patched["shares"] == pytest.approx(plain["shares"], rel=1e-4)
    assert min(plain["shares"].values()) > 0.02
    largest = max(abs(grad).max() for grad in plain["gradients"].values())
    for name, grad in plain["gradients"].items():
        numpy.testing.assert_allclose(patched["gradients"][name], grad, rtol=0, atol=1e-5 * largest, err_msg=name)
    # Why a forward pass serves one backward pass only: the second finds gradients where activations were.
    first, second = patched["twice"]
    assert abs(second - first) > 0.1 * first

"""Kernels for ordinary cores as OpenCL: the same templates, compiled by a driver and run.

A second opinion on numbers: another code generator than CUDA's, and a real run time. float32, which
every device has.
"""

from functools import partial

import pytest

from tbn_tvm.schedules.cuda import KERNELS
from tbn_tvm.schedules.reference import AlphaLayout
from tbn_tvm.testing import opencl
from tbn_tvm.testing.products import convolution, dense

LAYER, TILE, ROW, SEGMENT = AlphaLayout


@pytest.fixture(scope="module", autouse=True)
def device():
    if opencl.device() is None:
        pytest.skip("needs pyopencl and an OpenCL device that is a CPU, such as PoCL")


def check(kernel, problem, *batches):
    function, words = problem.function(KERNELS[kernel])
    for batch in batches or (problem.workload.batch,):
        problem.check(lambda *arrays: opencl.run(function, list(arrays)), words, batch)


dense32 = partial(dense, dtype="float32")
convolution32 = partial(convolution, dtype="float32")


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        ("dense_simt", dense32(64, 128, 4)),
        ("dense_simt", dense32(53, 101, 1, alpha=LAYER)),
        ("dense_simt", dense32(33, 20, 22, alpha=LAYER, bias=False)),
        ("dense_segments", dense32(7, 30, 6)),
        ("dense_segments", dense32(4, 64, 16, bias=False)),
        ("dense_segments", dense32(6, 50, 4, alpha=SEGMENT)),
    ],
)
def test_dense(kernel, problem):
    check(kernel, problem, 3, 37)


@pytest.mark.parametrize(
    "problem",
    [
        convolution32(32, 16, (3, 3), (8, 8), 2, padding=(1, 1)),
        convolution32(16, 16, (3, 3), (9, 13), 4, groups=16, strides=(2, 1)),
        convolution32(7, 6, (3, 3), (9, 9), 6, dilation=(2, 1)),
        convolution32(30, 24, (5,), (50,), 1, alpha=ROW, padding=(2,), bias=False),
    ],
)
def test_convolutions(problem):
    check("conv_simt", problem, 3)


@pytest.mark.parametrize("batch", [1, 8, 40])
def test_a_known_batch(batch):
    check("dense_simt", dense32(66, 300, 2, batch))

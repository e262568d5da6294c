"""Kernels through OpenCL against NumPy."""

import numpy as np
import pytest
from tvm.script import tirx as T

from tbn_tvm.testing import opencl

pytestmark = pytest.mark.skipif(
    opencl.device() is None, reason="needs pyopencl and an OpenCL driver for the CPU"
)


@T.prim_func(s_tir=True)
def reverse_rows(x: T.handle, y: T.handle):
    """y = 2 x with rows reversed: by a first kernel into scratch, then through shared memory."""
    T.func_attr({"global_symbol": "reverse_rows", "tirx.noalias": True})
    n = T.int64()
    X = T.match_buffer(x, (n, 64), "float32")
    Y = T.match_buffer(y, (n, 64), "float32")
    doubled = T.alloc_buffer((n, 64), "float32")
    for row in T.thread_binding(n, thread="blockIdx.x"):
        for column in T.thread_binding(64, thread="threadIdx.x"):
            doubled[row, column] = X[row, column] * T.float32(2)
    for row in T.thread_binding(n, thread="blockIdx.x"):
        for column in T.thread_binding(64, thread="threadIdx.x"):
            with T.sblock("row"):
                stage = T.sblock_alloc_buffer((64,), "float32", scope="shared")
                stage[column] = doubled[row, column]
                T.tvm_storage_sync("shared")
                Y[row, column] = stage[63 - column]


@pytest.mark.parametrize("rows", [1, 9])
def test_launches_share_scratch_and_threads_share_memory(rows):
    x = np.random.default_rng(0).normal(size=(rows, 64)).astype("float32")
    y = np.zeros_like(x)
    launches = opencl.run(reverse_rows, [x, y])
    assert [extents for _, extents, _ in launches] == 2 * [[rows, 1, 1, 64, 1, 1]]
    np.testing.assert_array_equal(y, 2 * x[:, ::-1])


@T.prim_func(s_tir=True)
def write_past(y: T.Buffer((60,), "float32")):
    """Writes four values too many."""
    T.func_attr({"global_symbol": "write_past", "tirx.noalias": True})
    Y = T.decl_buffer((64,), "float32", data=y.data)
    for thread in T.thread_binding(64, thread="threadIdx.x"):
        Y[thread] = T.float32(1)


def test_a_write_past_an_array_is_reported():
    with pytest.raises(IndexError, match="240 bytes, and a kernel wrote byte 240"):
        opencl.run(write_past, [np.zeros(60, "float32")])


@T.prim_func(s_tir=True)
def double(x: T.Buffer((64,), "float16"), y: T.Buffer((64,), "float16")):
    """y = 2 x."""
    T.func_attr({"global_symbol": "double", "tirx.noalias": True})
    for thread in T.thread_binding(64, thread="threadIdx.x"):
        y[thread] = x[thread] * T.float16(2)


def test_float16_runs_or_says_that_the_device_lacks_it():
    x = np.random.default_rng(0).normal(size=64).astype("float16")
    y = np.zeros_like(x)
    if "cl_khr_fp16" in opencl.device().extensions.split():
        opencl.run(double, [x, y])
        np.testing.assert_array_equal(y, 2 * x)
    else:
        with pytest.raises(opencl.OpenCLError, match="no cl_khr_fp16"):
            opencl.run(double, [x, y])

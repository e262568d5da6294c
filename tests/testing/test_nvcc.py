"""What the wrapper of NVIDIA's compiler reports."""

import pytest

from tbn_tvm.testing.nvcc import CompileError, compile_cuda, nvcc

pytestmark = pytest.mark.skipif(nvcc() is None, reason="needs nvcc")

SOURCE = """
extern "C" __global__ void __launch_bounds__(64) reverse(float* data) {
  __shared__ float stage[64];
  stage[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = stage[63 - threadIdx.x];
}
"""


def test_kernels_are_reported_by_name():
    compiled = compile_cuda(SOURCE, "sm_80")
    assert compiled.cubin[1:4] == b"ELF"
    report = compiled.kernels["reverse"]
    assert 0 < report.registers < 64
    assert report.shared == 256
    assert report.barriers == 1
    assert report.spill_stores == report.spill_loads == report.stack == 0


def test_errors_carry_the_message():
    with pytest.raises(CompileError, match='identifier "stag" is undefined'):
        compile_cuda(SOURCE.replace("= stage[", "= stag["))


def test_hopper_only_instructions_choose_its_architecture():
    body = 'asm volatile("wgmma.fence.sync.aligned;");'
    assert compile_cuda(SOURCE.replace("__syncthreads();", body)).kernels

"""NVIDIA's compiler takes every kernel and keeps its registers; no GPU is needed.

Shapes are those of real layers, configurations those of the rules.
"""

import functools

import pytest
import tvm

from tbn_tvm.schedules.cuda import KERNELS
from tbn_tvm.testing import nvcc
from tbn_tvm.testing.cuda_emulator import cuda_source
from tbn_tvm.testing.products import convolution, dense

pytestmark = pytest.mark.skipif(nvcc.nvcc() is None, reason="needs nvcc")


def wide(batch, dtype="float16"):
    return dense(4096, 4096, 4, batch, dtype)


def image(dtype="float16"):
    return convolution(256, 256, (3, 3), (56, 56), 4, 32, dtype, padding=(1, 1))


LAYERS = {
    "dense_mma_1": ("dense_mma", wide(1)),
    "dense_mma_64": ("dense_mma", wide(64)),
    "dense_mma_4096": ("dense_mma", wide(4096, "bfloat16")),
    "dense_simt_1": ("dense_simt", wide(1, "float32")),
    "dense_simt_64": ("dense_simt", wide(64, "float32")),
    "dense_simt_4096": ("dense_simt", wide(4096, "float32")),
    "dense_segments": ("dense_segments", dense(1000, 4096, 3200, 64, "float32")),
    "conv_mma": ("conv_mma", image()),
    "conv_simt": ("conv_simt", image("float32")),
}
HOPPER = {
    "dense_wgmma_1": ("dense_wgmma", wide(1)),
    "dense_wgmma_64": ("dense_wgmma", wide(64)),
    "dense_wgmma_4096": ("dense_wgmma", wide(4096, "bfloat16")),
    "dense_wgmma_any": ("dense_wgmma", wide(None)),
}


@functools.cache
def compiled(arch):
    """All kernels in one source: most of nvcc's time goes into headers."""
    layers = HOPPER if arch == "sm_90a" else LAYERS
    functions = {
        name: problem.function(KERNELS[kernel])[0].with_attr("global_symbol", name)
        for name, (kernel, problem) in layers.items()
    }
    source = cuda_source(tvm.IRModule(functions), {"kind": "cuda", "arch": arch})
    return nvcc.compile_cuda(source, arch)


@pytest.mark.parametrize(
    ("arch", "layer"),
    [(arch, layer) for arch in ("sm_80", "sm_90") for layer in LAYERS]
    + [("sm_90a", layer) for layer in HOPPER],
)
def test_nothing_spills(arch, layer):
    kernels = compiled(arch).kernels
    reports = [kernels[name] for name in kernels if name.startswith(f"{layer}_kernel")]
    assert reports
    for report in reports:
        assert (report.spill_stores, report.spill_loads) == (0, 0), report
        assert report.stack == 0, f"an array is indexed at run time: {report}"


def test_warpgroup_products_stay_asynchronous():
    assert "serialized" not in compiled("sm_90a").log

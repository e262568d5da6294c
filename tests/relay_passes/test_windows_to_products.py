"""WindowsToProducts: convolutions of long strides become dense products of their windows."""

import numpy as np
import pytest
import torch
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import tbn_tvm
from tbn_tvm import op as tbn
from tbn_tvm.nn import TiledConv1d, TiledConv2d, freeze
from tbn_tvm.relay_passes import WindowsToProducts

TILE = np.arange(96, dtype="uint8")
ALPHA = np.array([0.5, 0.25], "float32")
BIAS = np.linspace(-1, 1, 8).astype("float32")


def test_patches_become_rows_of_a_product():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 3, 16, 24), "float32")) -> R.Tensor(("n", 8, 2, 3), "float32"):
            with R.dataflow():
                gv = tbn.tiled_conv2d(
                    x,
                    R.const(TILE),
                    R.const(ALPHA),
                    R.const(BIAS),
                    out_channels=8,
                    kernel_size=[8, 8],
                    strides=[8, 8],
                    p=2,
                )
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 3, 16, 24), "float32")) -> R.Tensor(("n", 8, 2, 3), "float32"):
            n = T.int64()
            with R.dataflow():
                cut = R.reshape(x, R.shape([n, 3, 2, 8, 3, 8]))
                apart = R.permute_dims(cut, axes=[0, 2, 4, 1, 3, 5])
                rows = R.reshape(apart, R.shape([n, 6, 192]))
                y = tbn.tiled_dense(
                    rows, R.const(TILE), R.const(ALPHA), R.const(BIAS), out_features=8, p=2
                )
                image = R.reshape(y, R.shape([n, 2, 3, 8]))
                gv = R.permute_dims(image, axes=[0, 3, 1, 2])
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(WindowsToProducts()(Before), Expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "groups"), [(4, 4, 1), (3, 2, 1), (8, 8, 2)], ids=["few", "two", "groups"]
)
def test_other_convolutions_stay(kernel, stride, groups):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 16, 16), "float32")):
            with R.dataflow():
                gv = tbn.tiled_conv2d(
                    x,
                    R.const(np.zeros(4 // groups * kernel * kernel, "uint8")),
                    R.const(ALPHA[:1]),
                    out_channels=8,
                    kernel_size=[kernel, kernel],
                    strides=[stride, stride],
                    groups=groups,
                    p=1,
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(WindowsToProducts()(Before), Before)


@pytest.mark.parametrize("target", ["llvm", "host"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: TiledConv2d(3, 24, 16, stride=16, p=4, bias=True), (2, 3, 70, 48)),
        (
            lambda: TiledConv2d(3, 8, (9, 5), stride=(7, 5), padding=3, dilation=2, p=4),
            (1, 3, 40, 33),
        ),
        (lambda: TiledConv1d(2, 16, 50, stride=20, padding=7, p=8), (2, 2, 400)),
        (lambda: TiledConv2d(4, 16, 8, stride=8, groups=2, p=2), (1, 4, 24, 24)),
    ],
    ids=["patches, some left over", "padded and spread", "signal", "groups"],
)
def test_long_strides_are_right_and_compile_at_once(layer, shape, target):
    torch.manual_seed(0)
    module = torch.nn.Sequential(layer(), torch.nn.ReLU()).eval()
    x = torch.randn(shape)
    artifact = tbn_tvm.compile(torch.export.export(freeze(module), (x,)), target=target)
    y = artifact.run(x.numpy())
    expected = module.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

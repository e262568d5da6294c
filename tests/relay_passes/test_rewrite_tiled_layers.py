"""RewriteTiledLayers: products with a tiled weight become the tile-reuse operator."""

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_tvm import op as tbn
from tbn_tvm.relay_passes import RewriteTiledLayers

TILE = np.arange(16, dtype="uint8")
ALPHA = np.array([0.5, 0.25, 2.0, 1.0], "float32")
CONV_TILE = np.arange(18, dtype="uint8")


def test_matmul_becomes_tiled_dense():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 32), "float32")) -> R.Tensor((2, 3, 16), "float32"):
            with R.dataflow():
                w = tbn.tiled_weight(R.const(TILE), R.const(ALPHA), shape=(16, 32), p=4)
                wt = R.permute_dims(w)
                gv = R.matmul(x, wt)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 32), "float32")) -> R.Tensor((2, 3, 16), "float32"):
            with R.dataflow():
                gv = tbn.tiled_dense(x, R.const(TILE), R.const(ALPHA), out_features=16, p=4)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(RewriteTiledLayers()(Before), Expected)


def test_conv2d_keeps_its_window():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 9, 9), "float32")) -> R.Tensor((1, 8, 4, 4), "float32"):
            with R.dataflow():
                w = tbn.tiled_weight(
                    R.const(CONV_TILE), R.const(ALPHA[:2]), shape=(8, 4, 3, 3), p=2
                )
                gv = R.nn.conv2d(
                    x, w, strides=[2, 2], padding=[1, 1, 1, 1], dilation=[2, 2], groups=2
                )
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 8, 9, 9), "float32")) -> R.Tensor((1, 8, 4, 4), "float32"):
            with R.dataflow():
                gv = tbn.tiled_conv2d(
                    x,
                    R.const(CONV_TILE),
                    R.const(ALPHA[:2]),
                    out_channels=8,
                    kernel_size=[3, 3],
                    strides=[2, 2],
                    padding=[1, 1, 1, 1],
                    dilation=[2, 2],
                    groups=2,
                    p=2,
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(RewriteTiledLayers()(Before), Expected)


def test_conv1d_becomes_tiled_conv1d():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 16, 9), "float32")) -> R.Tensor((1, 6, 7), "float32"):
            with R.dataflow():
                w = tbn.tiled_weight(R.const(CONV_TILE), R.const(ALPHA[:2]), shape=(6, 16, 3), p=2)
                gv = R.nn.conv1d(x, w)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 16, 9), "float32")) -> R.Tensor((1, 6, 7), "float32"):
            with R.dataflow():
                gv = tbn.tiled_conv1d(
                    x, R.const(CONV_TILE), R.const(ALPHA[:2]), out_channels=6, kernel_size=[3], p=2
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(RewriteTiledLayers()(Before), Expected)


def test_a_float_product_stays():
    weight = np.ones((16, 32), "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 32), "float32")) -> R.Tensor((2, 16), "float32"):
            with R.dataflow():
                wt = R.permute_dims(R.const(weight))
                gv = R.matmul(x, wt)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(RewriteTiledLayers()(Before), Before)

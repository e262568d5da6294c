"""FuseBias: the addition behind a tiled product moves into it."""

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_tvm import op as tbn
from tbn_tvm.relay_passes import FuseBias

TILE = np.arange(16, dtype="uint8")
ALPHA = np.array([0.5, 0.25, 2.0, 1.0], "float32")
CONV_TILE = np.arange(18, dtype="uint8")
BIAS = np.linspace(-1, 1, 16).astype("float32")


def test_a_bias_on_either_side_of_the_sum_is_fused():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 32), "float32")) -> R.Tensor((2, 16), "float32"):
            with R.dataflow():
                y = tbn.tiled_dense(x, R.const(TILE), R.const(ALPHA), out_features=16, p=4)
                gv = R.add(R.const(BIAS), y)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 32), "float32")) -> R.Tensor((2, 16), "float32"):
            with R.dataflow():
                gv = tbn.tiled_dense(
                    x, R.const(TILE), R.const(ALPHA), R.const(BIAS), out_features=16, p=4
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FuseBias()(Before), Expected)


def test_a_reshaped_bias_of_a_convolution_is_fused_and_added_to_the_one_present():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                y = tbn.tiled_conv2d(
                    x,
                    R.const(CONV_TILE),
                    R.const(ALPHA[:2]),
                    R.const(BIAS[:8]),
                    out_channels=8,
                    kernel_size=[3, 3],
                    p=2,
                )
                b = R.reshape(R.const(BIAS[8:]), R.shape([1, 8, 1, 1]))
                gv = R.add(y, b)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                gv = tbn.tiled_conv2d(
                    x,
                    R.const(CONV_TILE),
                    R.const(ALPHA[:2]),
                    R.const(BIAS[:8] + BIAS[8:]),
                    out_channels=8,
                    kernel_size=[3, 3],
                    p=2,
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FuseBias()(Before), Expected)


def test_a_product_with_another_reader_keeps_its_value():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 32), "float32")) -> R.Tensor((2, 16), "float32"):
            with R.dataflow():
                y = tbn.tiled_dense(x, R.const(TILE), R.const(ALPHA), out_features=16, p=4)
                z = R.add(y, R.const(BIAS))
                gv = R.multiply(y, z)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FuseBias()(Before), Before)


def test_what_varies_along_another_axis_is_no_bias():
    other = np.ones((2, 1), "float32") * np.array([[1], [2]], "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 32), "float32")) -> R.Tensor((2, 16), "float32"):
            with R.dataflow():
                y = tbn.tiled_dense(x, R.const(TILE), R.const(ALPHA), out_features=16, p=4)
                gv = R.add(y, R.const(other))
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FuseBias()(Before), Before)

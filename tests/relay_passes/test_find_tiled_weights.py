"""FindTiledWeights: dense constants that are tiled are recognised, and only those."""

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm import op as tbn
from tbn_tvm.relay_passes import FindTiledWeights
from tbn_tvm.tiling import TiledTensor

RNG = np.random.default_rng(0)
TILED = TiledTensor.from_signs(RNG.choice([-1, 1], 16 * 32 // 4), [0.5, 0.25, 2.0, 1.0], (16, 32))
CONV = TiledTensor.from_signs(RNG.choice([-1, 1], 8 * 4 * 9 // 2), [0.5, 0.25], (8, 4, 3, 3))
FLOAT = RNG.normal(size=(16, 32)).astype("float32")


def test_a_tiled_constant_behind_a_transpose_becomes_a_tiled_weight():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 32), "float32")) -> R.Tensor(("n", 16), "float32"):
            n = T.int64()
            with R.dataflow():
                lv = R.permute_dims(R.const(TILED.expand()))
                gv: R.Tensor((n, 16), "float32") = R.matmul(x, lv)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 32), "float32")) -> R.Tensor(("n", 16), "float32"):
            n = T.int64()
            with R.dataflow():
                _dead = R.permute_dims(R.const(TILED.expand()))
                w = tbn.tiled_weight(
                    R.const(TILED.tile), R.const(TILED.alphas), shape=(16, 32), p=4
                )
                wt = R.permute_dims(w)
                gv: R.Tensor((n, 16), "float32") = R.matmul(x, wt)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FindTiledWeights()(Before), Expected)


def test_a_constant_with_features_last_is_recognised_by_its_columns():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 32), "float32")) -> R.Tensor((3, 16), "float32"):
            with R.dataflow():
                gv = R.matmul(x, R.const(TILED.expand().T.copy()))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((3, 32), "float32")) -> R.Tensor((3, 16), "float32"):
            with R.dataflow():
                w = tbn.tiled_weight(
                    R.const(TILED.tile), R.const(TILED.alphas), shape=(16, 32), p=4
                )
                wt = R.permute_dims(w)
                gv = R.matmul(x, wt)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FindTiledWeights()(Before), Expected)


def test_the_weights_of_a_convolution_are_recognised():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                gv = R.nn.conv2d(x, R.const(CONV.expand()))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                w = tbn.tiled_weight(
                    R.const(CONV.tile), R.const(CONV.alphas), shape=(8, 4, 3, 3), p=2
                )
                gv = R.nn.conv2d(x, w)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FindTiledWeights()(Before), Expected)


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(FLOAT, id="ordinary float weights"),
        pytest.param(np.abs(FLOAT), id="one sign: an alpha an element saves nothing"),
        pytest.param(TILED.expand() + (np.arange(512).reshape(16, 32) == 7), id="one odd element"),
    ],
)
def test_other_constants_stay_as_they_are(weight):
    weight = weight.astype("float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 32), "float32")) -> R.Tensor((3, 16), "float32"):
            with R.dataflow():
                lv = R.permute_dims(R.const(weight))
                gv = R.matmul(x, lv)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FindTiledWeights()(Before), Before)


def test_a_tiled_constant_that_no_product_reads_stays():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((16, 32), "float32")) -> R.Tensor((16, 32), "float32"):
            with R.dataflow():
                gv = R.multiply(x, R.const(TILED.expand()))
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FindTiledWeights()(Before), Before)

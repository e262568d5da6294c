"""FoldBatchNorm: batch norm becomes scalars of the product before it."""

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_tvm import op as tbn
from tbn_tvm.relay_passes import FoldBatchNorm
from tbn_tvm.relay_passes.fold_batch_norm import scale_alphas
from tbn_tvm.schedules.reference import AlphaLayout, Product
from tbn_tvm.tiling import Geometry

CONV_TILE = np.arange(18, dtype="uint8")
ALPHA = np.array([0.5, 0.25], "float32")
GAMMA = np.linspace(0.5, 2, 8).astype("float32")
BETA = np.linspace(-1, 1, 8).astype("float32")
MEAN = np.linspace(-2, 3, 8).astype("float32")
VARIANCE = np.linspace(0.1, 4, 8).astype("float32")
SCALE = GAMMA.astype("float64") / np.sqrt(VARIANCE.astype("float64") + 1e-5)


def test_alphas_become_one_a_channel_and_the_shift_becomes_the_bias():
    alphas = (np.repeat(ALPHA, 4).astype("float64") * SCALE).astype("float32")
    bias = (BETA - MEAN * SCALE).astype("float32")

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                y = tbn.tiled_conv2d(
                    x, R.const(CONV_TILE), R.const(ALPHA), out_channels=8, kernel_size=[3, 3], p=2
                )
                z = R.nn.batch_norm(
                    y,
                    R.const(GAMMA),
                    R.const(BETA),
                    R.const(MEAN),
                    R.const(VARIANCE),
                    axis=1,
                    training=False,
                )
                gv = z[0]
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
                    R.const(alphas),
                    R.const(bias),
                    out_channels=8,
                    kernel_size=[3, 3],
                    p=2,
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FoldBatchNorm()(Before), Expected)


def test_batch_norm_in_training_mode_is_not_folded():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                y = tbn.tiled_conv2d(
                    x, R.const(CONV_TILE), R.const(ALPHA), out_channels=8, kernel_size=[3, 3], p=2
                )
                z = R.nn.batch_norm(
                    y,
                    R.const(GAMMA),
                    R.const(BETA),
                    R.const(MEAN),
                    R.const(VARIANCE),
                    axis=1,
                    training=True,
                )
                gv = z[0]
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FoldBatchNorm()(Before), Before)


def test_a_product_with_another_reader_is_not_folded():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 8, 8), "float32")) -> R.Tensor((1, 8, 6, 6), "float32"):
            with R.dataflow():
                y = tbn.tiled_conv2d(
                    x, R.const(CONV_TILE), R.const(ALPHA), out_channels=8, kernel_size=[3, 3], p=2
                )
                z = R.nn.batch_norm(
                    y,
                    R.const(GAMMA),
                    R.const(BETA),
                    R.const(MEAN),
                    R.const(VARIANCE),
                    axis=1,
                    training=False,
                )
                w = z[0]
                gv = R.add(w, y)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(FoldBatchNorm()(Before), Before)


@pytest.mark.parametrize(
    ("m", "n", "q", "count"),
    [
        pytest.param(8, 36, 144, 2, id="whole rows"),
        pytest.param(8, 36, 12, 24, id="whole tiles"),
        pytest.param(6, 10, 15, 4, id="ragged"),
        pytest.param(6, 10, 4, 15, id="ragged, short tile"),
        pytest.param(6, 10, 15, 1, id="one alpha a layer"),
    ],
)
def test_scaled_alphas_scale_every_element_of_a_row(m, n, q, count):
    rng = np.random.default_rng(0)
    alphas, scale = rng.normal(size=count), rng.normal(size=m)
    product = Product(Geometry(m, n, q), count)
    scaled = Product(Geometry(m, n, q), scale_alphas(product, alphas, scale).size)
    values = scale_alphas(product, alphas, scale)
    assert scaled.alpha_layout in (AlphaLayout.ROW, AlphaLayout.SEGMENT, AlphaLayout.TILE)

    def magnitudes(product, alphas):
        """The alpha of each weight, by the product's own indexing."""
        result = np.zeros((m, n))
        for row in range(m):
            for segment in range(product.segments):
                start = max(segment * q - row * n % q, 0) if product.segments > 1 else 0
                stop = min((segment + 1) * q - row * n % q, n) if product.segments > 1 else n
                if start < stop:
                    result[row, start:stop] = alphas[product.alpha_index(row, segment)]
        return result

    expected = magnitudes(product, alphas) * scale[:, None]
    np.testing.assert_allclose(magnitudes(scaled, values), expected, rtol=1e-12)

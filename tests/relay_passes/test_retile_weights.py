"""RetileWeights: every product with constant weights gets another compression factor."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm import op as tbn
from tbn_tvm.relay_passes import RetileWeights
from tbn_tvm.tiling import TiledTensor

RNG = np.random.default_rng(0)
DENSE = RNG.normal(size=(16, 32)).astype("float32")
FILTERS = RNG.normal(size=(8, 4, 3, 3)).astype("float32")
BIAS = RNG.normal(size=16).astype("float32")


def tiling(weight, p, alpha="tile"):
    """What the pass makes of a float weight, in float64."""
    blocks = weight.astype("float64").reshape(p, -1)
    alphas = np.abs(blocks).mean(1)
    alphas = alphas if alpha == "tile" else [alphas.mean()]
    return TiledTensor.from_signs(np.where(blocks.sum(0) > 0, 1, -1), alphas, weight.shape)


@I.ir_module
class Floats:
    """A product behind a transpose, with the batch free."""

    @R.function
    def main(x: R.Tensor(("n", 32), "float32")) -> R.Tensor(("n", 16), "float32"):
        n = T.int64()
        with R.dataflow():
            lv = R.permute_dims(R.const(DENSE))
            gv: R.Tensor((n, 16), "float32") = R.matmul(x, lv)
            R.output(gv)
        return gv


def tiled_parts(mod):
    """The weights of all tiled products of a module."""
    from tbn_tvm.inspect import tiled_tensor

    found = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            if tbn.is_product(binding.value):
                found.append(tiled_tensor(binding.value))
    return found


def assert_close(found, expected):
    """Equal bits, alphas up to rounding."""
    assert (found.shape, found.p) == (expected.shape, expected.p)
    np.testing.assert_array_equal(found.tile, expected.tile)
    np.testing.assert_allclose(found.alphas, expected.alphas, rtol=1e-6)


def test_a_float_product_becomes_a_tiled_one():
    after = RetileWeights(4, 0)(Floats)
    (found,) = tiled_parts(after)
    assert_close(found, tiling(DENSE, 4))

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 32), "float32")) -> R.Tensor(("n", 16), "float32"):
            n = T.int64()
            with R.dataflow():
                gv: R.Tensor((n, 16), "float32") = tbn.tiled_dense(
                    x, R.const(found.tile), R.const(found.alphas), out_features=16, p=4
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(after, Expected)


def test_convolutions_keep_their_attributes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 9, 9), "float32")) -> R.Tensor((1, 8, 5, 5), "float32"):
            with R.dataflow():
                gv = R.nn.conv2d(x, R.const(FILTERS), strides=[2, 2], padding=[1, 1], groups=2)
                R.output(gv)
            return gv

    after = RetileWeights(2, 0)(Before)
    (found,) = tiled_parts(after)
    assert_close(found, tiling(FILTERS, 2))

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 8, 9, 9), "float32")) -> R.Tensor((1, 8, 5, 5), "float32"):
            with R.dataflow():
                gv = tbn.tiled_conv2d(
                    x,
                    R.const(found.tile),
                    R.const(found.alphas),
                    out_channels=8,
                    p=2,
                    kernel_size=[3, 3],
                    strides=[2, 2],
                    padding=[1, 1],
                    groups=2,
                )
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(after, Expected)


@pytest.mark.parametrize("alpha", ["tile", "layer"])
def test_small_layers_are_binary_and_alphas_as_asked(alpha):
    (found,) = tiled_parts(RetileWeights(4, 512, alpha)(Floats))
    assert_close(found, tiling(DENSE, 4, alpha))
    (found,) = tiled_parts(RetileWeights(4, 513, alpha)(Floats))
    assert_close(found, tiling(DENSE, 1, alpha))


def tiled_module(p):
    held = tiling(DENSE, p)
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((3, 32), "float32"))
    tile, alphas = relax.const(held.tile), relax.const(held.alphas)
    product = tbn.tiled_dense(x, tile, alphas, relax.const(BIAS), out_features=16, p=p)
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(product)
        builder.emit_func_output(result)
    return builder.get(), held


def test_a_tiled_product_gets_the_other_factor_and_keeps_its_bias():
    before, held = tiled_module(2)
    after = RetileWeights(4, 0)(before)
    (found,) = tiled_parts(after)
    assert_close(found, tiling(held.expand(), 4))
    call = next(
        binding.value
        for block in after["main"].body.blocks
        for binding in block.bindings
        if tbn.is_product(binding.value)
    )
    np.testing.assert_array_equal(call.args[3].value.numpy(), BIAS)


def test_without_a_factor_weights_are_float_and_the_product_is_the_same():
    before, held = tiled_module(2)
    after = RetileWeights(None)(before)
    assert tiled_parts(after) == []
    executable = tvm.compile(after, target="llvm")
    x = RNG.normal(size=(3, 32)).astype("float32")
    actual = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
    expected = x.astype("float64") @ held.expand(np.float64).T + BIAS
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_products_of_two_activations_stay_as_they_are():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 8), "float32"), y: R.Tensor((8, 4), "float32")) -> R.Tensor(
            (4, 4), "float32"
        ):
            with R.dataflow():
                gv = R.matmul(x, y)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(RetileWeights(4, 0)(Before), Before)

"""The graph operators: type inference, printing, and what they refuse."""

import numpy as np
import pytest
from tvm import relax
from tvm import tirx as tir

from tbn_tvm import op


def tensor(shape, dtype="float32"):
    """A variable of a tensor type."""
    return relax.Var("x", relax.TensorType(shape, dtype))


def normalised(call):
    """The call with its type inferred."""
    return relax.BlockBuilder().normalize(call)


def parts(bits, alphas, bias=None):
    """Constants: tile of so many bits, alphas, bias."""
    made = [np.zeros((bits + 7) // 8, "uint8"), np.ones(alphas, "float32")]
    if bias is not None:
        made.append(np.zeros(bias, "float32"))
    return [relax.const(value) for value in made]


def test_dense_output_keeps_the_leading_axes_even_symbolic_ones():
    batch = tir.Var("batch", "int64")
    call = normalised(
        op.tiled_dense(tensor((batch, 7, 32), "float16"), *parts(128, 4), out_features=16, p=4)
    )
    assert call.ty.dtype == "float16"
    assert call.ty.shape.values[0].same_as(batch)
    assert [int(extent) for extent in call.ty.shape.values[1:]] == [7, 16]


def test_conv_output_follows_the_window():
    call = normalised(
        op.tiled_conv2d(
            tensor((2, 4, 9, 11)),
            *parts(8 * 2 * 9 // 2, 2, 8),
            out_channels=8,
            kernel_size=[3, 3],
            strides=[2, 1],
            padding=[1, 0],
            dilation=[1, 2],
            groups=2,
            p=2,
        )
    )
    assert [int(extent) for extent in call.ty.shape.values] == [2, 8, 5, 7]


def test_calls_print_under_their_namespace():
    call = normalised(op.tiled_dense(tensor((1, 32)), *parts(128, 4), out_features=16, p=4))
    assert "R.tbn.tiled_dense(" in call.script()


@pytest.mark.parametrize("count", [1, 4, 16])
def test_alphas_may_be_one_a_layer_a_tile_or_an_output_channel(count):
    call = op.tiled_dense(tensor((1, 32)), *parts(128, count), out_features=16, p=4)
    assert op.product_of(normalised(call)).alpha_count == count


DENSE = {"out_features": 16, "p": 4}
CONV = {"out_channels": 8, "kernel_size": [3, 3], "p": 2}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(
            lambda: op.tiled_dense(tensor((1, 33)), *parts(128, 4), **DENSE),
            r"tile is uint8 of shape \(16,\): expected uint8 of shape \(17,\)",
            id="tile of another layer",
        ),
        pytest.param(
            lambda: op.tiled_dense(tensor((1, 31)), *parts(128, 4), out_features=15, p=4),
            "p = 4 does not divide the 15 x 31 = 465 weights",
            id="p does not divide",
        ),
        pytest.param(
            lambda: op.tiled_dense(tensor((1, 32)), *parts(128, 3), **DENSE),
            r"3 alphas: expected 1 \(one a layer\), 4 \(one a tile\), 16",
            id="alpha count",
        ),
        pytest.param(
            lambda: op.tiled_dense(tensor((1, 32)), *parts(128, 4, 15), **DENSE),
            r"bias is float32 of shape \(15,\): expected .* of shape \(16,\)",
            id="bias length",
        ),
        pytest.param(
            lambda: op.tiled_dense(tensor((1, 32), "int8"), *parts(128, 4), **DENSE),
            "x has dtype int8",
            id="integer input",
        ),
        pytest.param(
            lambda: op.tiled_dense(
                tensor((1, 32)), relax.const(np.zeros(16, "int8")), *parts(128, 4)[1:], **DENSE
            ),
            "tile is int8",
            id="signed tile",
        ),
        pytest.param(
            lambda: op.tiled_dense(tensor((4, tir.Var("n", "int64"))), *parts(128, 4), **DENSE),
            "the last axis of x is symbolic",
            id="symbolic features",
        ),
        pytest.param(
            lambda: op.tiled_conv2d(tensor((1, 4, 8)), *parts(144, 2), **CONV),
            "expected 4 axes",
            id="conv rank",
        ),
        pytest.param(
            lambda: op.tiled_conv2d(tensor((1, 4, 8, 8)), *parts(144, 2), **CONV, groups=3),
            "groups = 3 does not divide",
            id="groups",
        ),
        pytest.param(
            lambda: op.tiled_conv2d(tensor((1, 4, 2, 8)), *parts(144, 2), **CONV),
            "does not fit an input extent of 2",
            id="window larger than the input",
        ),
    ],
)
def test_wrong_shapes_are_refused_with_what_was_given_and_expected(build, message):
    with pytest.raises(ValueError, match=message):
        normalised(build())
